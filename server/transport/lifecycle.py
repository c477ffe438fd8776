"""Readiness, requests in flight, and the two phases of a graceful shutdown."""

import asyncio

from server.engine_port import Engine, Queue
from server.schemas.errors import ApiError, queue_unavailable

CLOSE = {"Connection": "close"}


class Lifecycle:
    """Takes requests while the engine is ready.

    A shutdown first fails readiness while requests are still served, then drains: new requests are refused
    and requests in flight finish.
    """

    def __init__(self, engine: Engine, queue: Queue | None = None) -> None:
        self._engine = engine
        self._queue = queue
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.is_shutting_down = False
        self.is_draining = False

    @property
    def in_flight(self) -> int:
        return self._in_flight

    def check_open(self) -> None:
        """Raises ApiError 503 if new requests are refused."""
        self._check(self.is_draining)

    def check_accepting(self) -> None:
        """Raises ApiError 503 if the server is draining. Unlike `check_open`, ignores the engine."""
        if self.is_draining:
            raise _draining()

    def is_open(self) -> bool:
        """Whether new work may start."""
        return self._engine.is_ready and not self.is_draining

    def check_ready(self) -> None:
        """Raises ApiError 503 if new requests are refused or a shutdown has begun."""
        self._check(self.is_shutting_down or self.is_draining)

    def _check(self, is_leaving: bool) -> None:
        if is_leaving:
            raise _draining()
        if self._queue is not None and not self._queue.is_up:
            raise queue_unavailable()
        if not self._engine.is_ready:
            message = "No device is ready: the model is loading, or a device does not respond."
            raise ApiError(503, "model_not_ready", message, retry_after=5, headers=CLOSE)

    def is_closing(self) -> bool:
        """Connections close after their response: the client's next request belongs to another server."""
        return self.is_shutting_down

    def request_started(self) -> None:
        self._in_flight += 1
        self._idle.clear()

    def request_finished(self) -> None:
        self._in_flight -= 1
        if self._in_flight == 0:
            self._idle.set()

    def begin_shutdown(self) -> None:
        """Fail readiness, so that load balancers stop sending requests, and still serve those that arrive."""
        self.is_shutting_down = True

    def drain(self) -> None:
        """Refuse new requests; requests in flight finish."""
        self.is_draining = True
        if self._queue is not None:
            self._queue.begin_drain()

    async def wait_idle(self) -> None:
        """Wait until no request is in flight, and no work of the queue is in hand."""
        await self._idle.wait()
        if self._queue is not None:
            await self._queue.drained()


def _draining() -> ApiError:
    return ApiError(503, "server_draining", "The server is shutting down.", retry_after=1, headers=CLOSE)
