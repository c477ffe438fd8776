"""A fleet on one machine: `make demo-fleet`.

Starts a broker, a front and two workers on the demo model, sends a burst of requests, kills a worker in the
middle, and prints when each request was answered. Then creates a job and saves its image.
"""

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from server.command.local_server import listening
from server.demo.processes import OUTPUT, PROMPT, READY_SECONDS, wait_ready
from server.queue.connection.embedded import EmbeddedServer, embedded_server

NUM_REQUESTS = 16
KILL_AFTER = 4  # answers
SIZES = ("64x64", "96x96", "128x128")
REDELIVERED = "ideoserve_queue_redelivered_total"


@dataclass(frozen=True, slots=True)
class Server:
    process: subprocess.Popen[str]
    url: str


@dataclass(frozen=True, slots=True)
class Answer:
    """`seconds` is the latency."""

    size: str
    status: int
    seconds: float


class Burst:
    """Sends all requests at once, and kills a worker after some answers."""

    def __init__(self, front: Server, worker: Server) -> None:
        self._front = front
        self._worker = worker
        self._left = KILL_AFTER
        self._lock = threading.Lock()

    def run(self) -> list[Answer]:
        with ThreadPoolExecutor(NUM_REQUESTS) as pool:
            return list(pool.map(self._send, range(NUM_REQUESTS)))

    def _send(self, number: int) -> Answer:
        size, started = SIZES[number % len(SIZES)], time.perf_counter()
        body = {"prompt": PROMPT, "size": size, "seed": number}
        response = httpx.post(f"{self._front.url}/v1/images", json=body, timeout=READY_SECONDS)
        self._answered()
        return Answer(size, response.status_code, time.perf_counter() - started)

    def _answered(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left == 0:
                self._worker.process.kill()


def main() -> None:
    """Raises RuntimeError if a server does not start."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        broker = stack.enter_context(embedded_server(folder / "queue"))
        credentials = _write_credentials(folder, broker)
        front, doomed, other = (
            stack.enter_context(_server(broker, credentials, role)) for role in ("front", "worker", "worker")
        )
        for server in (doomed, other, front):
            wait_ready(server.url)
        print(f"broker {broker.url}, front {front.url}, workers {doomed.url} and {other.url}")
        _print(Burst(front, doomed).run())
        print(f"run again on the other worker: {_metric(other, REDELIVERED):.0f}")
        _job(front)


def _write_credentials(folder: Path, broker: EmbeddedServer) -> Path:
    file = folder / "credentials"
    file.touch(mode=0o600)
    file.write_text(f"ideoserve:{broker.password}")
    return file


@contextmanager
def _server(broker: EmbeddedServer, credentials: Path, role: str) -> Iterator[Server]:
    flags = ["--model", "models/demo", "--port", "0", "--log-level", "error", "--role", role]
    flags += ["--queue", broker.url, "--queue-credentials-file", str(credentials)]
    command = [sys.executable, "-m", "server", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield Server(process, listening(process))
    finally:
        process.terminate()
        process.wait()


def _print(answers: list[Answer]) -> None:
    print("request  size     status  seconds")
    for number, answer in enumerate(answers):
        print(f"{number:7}  {answer.size:7}  {answer.status:6}  {answer.seconds:7.2f}")
    answered = sum(answer.status == 200 for answer in answers)
    print(f"{answered} of {len(answers)} answered; a worker was killed after {KILL_AFTER} answers")


def _metric(server: Server, name: str) -> float:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))


def _job(front: Server) -> None:
    """Create a job, read its events until it ends, and save its image."""
    with httpx.Client(base_url=front.url, timeout=READY_SECONDS) as client:
        created = client.post("/v1/jobs", json={"prompt": PROMPT, "seed": 7})
        created.raise_for_status()
        location = created.headers["location"]
        client.get(f"{location}/events").raise_for_status()
        job = client.get(location).json()
        image = client.get(job["images"][0]["url"])
        image.raise_for_status()
        OUTPUT.write_bytes(image.content)
        print(f"job {location} {job['status']}, image in {OUTPUT.resolve()}")


if __name__ == "__main__":
    main()
