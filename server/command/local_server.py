"""Server processes that the commands and the demonstrations start."""

import subprocess


def listening(server: subprocess.Popen[str]) -> str:
    """URL of a server that was started with `--port 0`. Raises RuntimeError."""
    assert server.stdout is not None
    line = server.stdout.readline()
    if not line.startswith("listening on "):
        raise RuntimeError("the server exited before it listened; its output is above")
    return line.removeprefix("listening on ").strip()
