"""Keeps work that takes milliseconds off the event loop."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
SMALL = 1000  # bytes or characters


async def offload(size: int, work: Callable[[], T]) -> T:
    """Run `work` on `size` bytes or characters: inline if that is small, else in a thread."""
    return work() if size < SMALL else await asyncio.to_thread(work)
