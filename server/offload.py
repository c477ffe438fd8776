"""Work that takes milliseconds, kept off the event loop."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
SMALL = 1000  # bytes or characters


async def offload(size: int, work: Callable[[], T]) -> T:
    """What `work` makes of `size` bytes or characters: at once if that is small, else in a thread."""
    return work() if size < SMALL else await asyncio.to_thread(work)
