"""Work that pauses at each yield, so that whoever drives it may do other work in between."""

from collections.abc import Callable, Generator
from typing import Generic, TypeVar

T = TypeVar("T")


class ResumableTask(Generic[T]):
    """Work under way. `seconds` it took so far, its pauses not counted."""

    def __init__(self, parts: Generator[None, None, T], clock: Callable[[], float]) -> None:
        self.seconds = 0.0
        self._parts = parts
        self._clock = clock

    def advance(self, seconds: float) -> T | None:
        """Run at least one part, and more for `seconds`; the result, or None if it is not done."""
        started = self._clock()
        try:
            next(self._parts)
            while self._clock() < started + seconds:
                next(self._parts)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            self.seconds += self._clock() - started
        return None


def drain(work: Generator[None, None, T]) -> T:
    """Run `work` to its end without a pause; what it returns."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: T = end.value
            return result
