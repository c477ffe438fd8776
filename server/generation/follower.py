"""One response's view of a transcript."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from engine.errors import DeadlineExceededError
from server.generation.transcript import Event, Transcript
from server.schemas.errors import from_engine


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Follower:
    """Waits until its own `deadline` (`time.monotonic()`) and no longer, whatever those of others are.

    To be left, once, when the response is done.
    """

    transcript: Transcript
    deadline: float
    leave: Callable[[], None] = _nothing

    async def prepared(self) -> None:
        """Until the prompt has passed: nothing is on the device before. Raises ApiError."""
        while not (self.transcript.is_prepared or self.transcript.is_done):
            await self._news(self.deadline)
        if not self.transcript.is_prepared:
            self._raise_failure()

    async def events(self, idle_seconds: float | None = None) -> AsyncIterator[Event | None]:
        """All events from the first; None after each `idle_seconds` of silence. Raises ApiError."""
        index = 0
        while True:
            while index < len(self.transcript.events):
                yield self.transcript.events[index]
                index += 1
            if self.transcript.is_done:
                self._raise_failure()
                return
            # Nothing is awaited since the last look at the events, so no news can be missed.
            idle = time.monotonic() + idle_seconds if idle_seconds is not None else self.deadline
            if not await self._news(min(idle, self.deadline)):
                yield None

    def _raise_failure(self) -> None:
        if self.transcript.failure:
            raise self.transcript.failure.copy()

    async def _news(self, until: float) -> bool:
        """Whether there is any. Raises ApiError 504 at the deadline."""
        try:
            async with asyncio.timeout_at(until):
                await self.transcript.news()
            return True
        except TimeoutError:
            if until < self.deadline:
                return False
        raise from_engine(DeadlineExceededError("the deadline passed"))
