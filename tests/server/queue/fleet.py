"""Processes that share a queue, and the broker between them."""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
import nats

from server.queue import names
from tests.server.process import ServerProcess, small, until
from tests.server.queue.nats_server import NatsServer


class Fleet:
    """Starts fronts and workers of one model over the fake engine."""

    def __init__(
        self, start: Callable[..., ServerProcess], broker: NatsServer, model: str, beat_seconds: str = "0.3"
    ) -> None:
        self._beat_seconds = beat_seconds
        self.broker = broker
        self.model = model
        self._start = start

    def worker(self, *flags: str) -> ServerProcess:
        return self.process("worker", *flags)

    def front(self, *flags: str, queue: str | None = None) -> ServerProcess:
        """`queue` is the URL of the broker, if not its own."""
        return self.process("front", *(("--queue", queue) if queue else ()), *flags)

    def process(self, role: str, *flags: str, **environment: str) -> ServerProcess:
        environment = {"FAKE_MODEL": self.model, "FAKE_BEAT_SECONDS": self._beat_seconds} | environment
        return self._start("--queue", self.broker.url, "--role", role, *flags, **environment)

    def messages(self, stream: names.Stream, suffix: str = "") -> int:
        """Requests for this model, or results of all fronts, whose subjects end with `suffix`."""
        subjects = asyncio.run(self._messages(stream))
        return sum(number for subject, number in subjects.items() if subject.endswith(suffix))

    async def _messages(self, stream: names.Stream) -> dict[str, int]:
        client = await nats.connect(self.broker.url)
        state = (await client.jetstream().stream_info(stream.name, subjects_filter=">")).state
        await client.close()
        prefix = f"work.{names.token(self.model)}." if stream is names.WORK else "results."
        subjects = (state.subjects or {}).items()
        return {subject: number for subject, number in subjects if subject.startswith(prefix)}


def ready(*processes: ServerProcess) -> None:
    for process in processes:
        until(partial(_is_ready, process))


def _is_ready(process: ServerProcess) -> bool:
    return process.http.get("/readyz").status_code == 200


def submit(
    pool: ThreadPoolExecutor, front: ServerProcess, headers: dict[str, str] | None = None, **body: Any
) -> "Future[httpx.Response]":
    return pool.submit(front.create, headers, **body)


def stream(front: ServerProcess) -> "contextlib.AbstractContextManager[httpx.Response]":
    """A request that holds, whose client leaves at the end of the block."""
    return httpx.stream("POST", f"{front.url}/v1/images", json=small(prompt="hold: x", stream=True))


@dataclass(frozen=True)
class Pair:
    """A worker that runs one request at a time, and a front."""

    fleet: Fleet
    worker: ServerProcess
    front: ServerProcess
