"""The `ideoserve` command: the same as `python -m server`.

Each worker process imports the installed script, and this module with it: the HTTP stack is imported on call.
"""

import sys


def main() -> int:
    """Return the exit code."""
    from server.__main__ import main as serve

    return serve(sys.argv[1:])
