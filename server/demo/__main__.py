"""Serve the demo model, send one request and save the image: `make demo`."""

import subprocess
import sys
import time

import httpx

from server.command.local_server import listening
from server.demo.processes import OUTPUT, PROMPT, READY_SECONDS, wait_ready


def main() -> None:
    """Raises RuntimeError if the server does not start."""
    started = time.perf_counter()
    server = subprocess.Popen(
        [sys.executable, "-m", "server", "--model", "models/demo", "--port", "0", "--log-level", "warning"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        url = listening(server)
        wait_ready(url)
        print(f"ready    {time.perf_counter() - started:6.2f} s  {url}")
        _draw(url)
    finally:
        server.terminate()
        server.wait()


def _draw(url: str) -> None:
    started = time.perf_counter()
    answer = httpx.post(
        f"{url}/v1/images",
        json={"prompt": PROMPT, "seed": 7},
        headers={"Accept": "image/png"},
        timeout=READY_SECONDS,
    )
    seconds = time.perf_counter() - started
    answer.raise_for_status()
    OUTPUT.write_bytes(answer.content)
    for stage, milliseconds in _stages(answer.headers["server-timing"]):
        print(f"{stage:8} {milliseconds / 1000:6.2f} s")
    print(f"request  {seconds:6.2f} s  total, as seen by the client")
    print(f'{OUTPUT.resolve()}: "{PROMPT}", seed {answer.headers["x-seed"]}')


def _stages(server_timing: str) -> list[tuple[str, float]]:
    """Parse `queue;dur=1.2, encode;dur=3` into names and milliseconds."""
    parts = [part.strip().split(";dur=") for part in server_timing.split(",")]
    return [(name, float(duration)) for name, duration in parts if name != "total"]


if __name__ == "__main__":
    main()
