"""What the demonstrations share."""

import time
from pathlib import Path

import httpx

PROMPT = "a red circle on a white background"
OUTPUT = Path("demo.png")
READY_SECONDS = 120


def wait_ready(url: str) -> None:
    """Raises RuntimeError."""
    until = time.monotonic() + READY_SECONDS
    while httpx.get(f"{url}/readyz").status_code != 200:
        if time.monotonic() > until:
            raise RuntimeError(f"the model was not ready within {READY_SECONDS} s")
        time.sleep(0.1)  # readiness can only be polled
