"""Resumable tasks: generators that yield wherever they can be paused, so the caller can interleave other
work."""

from collections.abc import Callable, Generator
from typing import Generic, TypeVar

T = TypeVar("T")


class ResumableTask(Generic[T]):
    """Runs a generator in time slices. `seconds` is the time that it has taken so far, without pauses.

    `is_waiting`: whether its next part would wait for something that goes on beside other work.
    """

    def __init__(
        self,
        parts: Generator[None, None, T],
        clock: Callable[[], float],
        is_waiting: Callable[[], bool] = lambda: False,
    ) -> None:
        self.seconds = 0.0
        self.is_waiting = is_waiting
        self._results: list[T] = []
        self._pauses = _pauses(parts, self._results)
        self._clock = clock

    def advance(self, seconds: float) -> T | None:
        """Run at least one part, and further parts for `seconds`. Returns the result once there is one."""
        started = self._clock()
        try:
            for _ in self._pauses:
                if self._clock() >= started + seconds or self.is_waiting():
                    return None
            return self._results[0]
        finally:
            self.seconds += self._clock() - started


def drain(parts: Generator[None, None, T]) -> T:
    """Run a generator to its end and return its result."""
    results: list[T] = []
    for _ in _pauses(parts, results):
        pass
    return results[0]


def calling(parts: Generator[None, None, T], callback: Callable[[], None]) -> Generator[None, None, T]:
    """Run a generator, and call `callback` before each of its pauses."""
    results: list[T] = []
    for _ in _pauses(parts, results):
        callback()
        yield
    return results[0]


def _pauses(parts: Generator[None, None, T], results: list[T]) -> Generator[None, None, None]:
    """Iterate over the pauses of a generator, then append its result."""
    results.append((yield from parts))
