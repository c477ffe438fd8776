"""The `ideoserve` command: serves, like `python -m server`, or runs one of the other commands.

Each worker process imports this module with the installed script, so everything else is imported on call.
"""

import sys

COMMANDS = ("generate", "request", "completion")


def main() -> int:
    """Return the exit code."""
    argv = sys.argv[1:]
    if argv and argv[0] in COMMANDS:
        from server.command.commands import main as run

        return run(argv)
    from server.__main__ import main as serve

    return serve(argv)
