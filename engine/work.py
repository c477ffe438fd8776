"""Work that pauses at each yield, so that whoever drives it may do other work in between."""

from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")


def drain(work: Generator[None, None, T]) -> T:
    """Run `work` to its end without a pause; what it returns."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: T = end.value
            return result
