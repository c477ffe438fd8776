"""Whether new requests may come in, and whether any is still inside."""

import asyncio

from server.engine_port import Engine
from server.schemas.errors import ApiError

CLOSE = {"Connection": "close"}


class Gate:
    """Open once the engine is ready, shut for good when the drain begins. Before that it may be announced."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._in_flight = 0
        self._empty = asyncio.Event()
        self._empty.set()
        self.is_announced = False
        self.is_draining = False

    @property
    def in_flight(self) -> int:
        return self._in_flight

    def check(self) -> None:
        """Raises ApiError 503."""
        self._check(self.is_draining)

    def check_ready(self) -> None:
        """Raises ApiError 503, once the drain is announced too."""
        self._check(self.is_announced or self.is_draining)

    def _check(self, is_leaving: bool) -> None:
        if is_leaving:
            message = "The server is shutting down."
            raise ApiError(503, "server_draining", message, retry_after=1, headers=CLOSE)
        if not self._engine.is_ready:
            message = "No device is ready: the model is loading, or a device does not respond."
            raise ApiError(503, "model_not_ready", message, retry_after=5, headers=CLOSE)

    def enter(self) -> None:
        self._in_flight += 1
        self._empty.clear()

    def leave(self) -> None:
        self._in_flight -= 1
        if self._in_flight == 0:
            self._empty.set()

    def announce(self) -> None:
        """From now on not ready, so that balancers turn away; who still comes is served."""
        self.is_announced = True

    def drain(self) -> None:
        """From now on nothing new; what is inside finishes."""
        self.is_draining = True

    async def empty(self) -> None:
        """Until nobody is inside."""
        await self._empty.wait()
