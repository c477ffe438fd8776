"""The `ideoserve` command, equivalent to `python -m server`.

Each worker process imports this module with the installed script, so the HTTP stack is imported on call.
"""

import sys


def main() -> int:
    """Return the exit code."""
    from server.__main__ import main as serve

    return serve(sys.argv[1:])
