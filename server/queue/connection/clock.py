"""The clock of the NATS servers, which all processes of a fleet share."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, overload

import nats.errors

from server.queue.names import WORK

SYNC_SECONDS = 30.0
# Longer round trips are not used, because the error is up to half of one.
MAX_ROUND_TRIP_SECONDS = 0.2


class Clock:
    """Translates times of this process, which are those of `time.monotonic()`, to seconds since the epoch on
    the server that leads a stream. Clocks of hosts do not matter."""

    def __init__(self, ask: Callable[[str, Mapping[str, Any]], Awaitable[Mapping[str, Any]]]) -> None:
        """`ask` calls JetStream's API."""
        self._ask = ask
        self._offset: float | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Follow the clock from now on."""
        self._task = asyncio.create_task(self._follow())

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.monotonic() + self._known_offset

    def shared(self, local: float | None) -> float | None:
        """Seconds of `time.monotonic()` as seconds since the epoch."""
        return None if local is None else local + self._known_offset

    @overload
    def local(self, shared: float) -> float: ...

    @overload
    def local(self, shared: float | None) -> float | None: ...

    def local(self, shared: float | None) -> float | None:
        """Seconds since the epoch as seconds of `time.monotonic()`."""
        return None if shared is None else shared - self._known_offset

    async def sync(self) -> None:
        """Raises nats.errors.Error if the server does not answer."""
        asked = time.monotonic()
        info = await self._ask(f"$JS.API.STREAM.INFO.{WORK.name}", {})
        answered = time.monotonic()
        answer = datetime.fromisoformat(info["ts"]).timestamp()
        if self._offset is None or answered - asked < MAX_ROUND_TRIP_SECONDS:
            self._offset = answer - (asked + answered) / 2

    @property
    def _known_offset(self) -> float:
        return time.time() - time.monotonic() if self._offset is None else self._offset

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(SYNC_SECONDS)
            with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
                await self.sync()
