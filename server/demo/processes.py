"""Server processes of the demonstrations."""

import subprocess
import time
from pathlib import Path

import httpx

PROMPT = "a red circle on a white background"
OUTPUT = Path("demo.png")
READY_SECONDS = 120


def listening(server: subprocess.Popen[str]) -> str:
    """URL of a server that was started with `--port 0`. Raises RuntimeError."""
    assert server.stdout is not None
    line = server.stdout.readline()
    if not line.startswith("listening on "):
        raise RuntimeError("the server exited before it listened; its output is above")
    return line.removeprefix("listening on ").strip()


def wait_ready(url: str) -> None:
    """Raises RuntimeError."""
    until = time.monotonic() + READY_SECONDS
    while httpx.get(f"{url}/readyz").status_code != 200:
        if time.monotonic() > until:
            raise RuntimeError(f"the model was not ready within {READY_SECONDS} s")
        time.sleep(0.1)  # readiness can only be polled
