"""Cancellation of work when its client disconnects."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Receive

from server.schemas.errors import ClientDisconnectedError
from server.transport.connection import connection_of

T = TypeVar("T")


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`; cancel it and raise ClientDisconnectedError if the client disconnects.

    A half-closed connection counts as a disconnect: a client whose process died looks the same. The body must
    have been read before, so that the next message can only be a disconnect.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(request.receive))
    half_gone = asyncio.create_task(connection_of(request).half_closed.wait())
    tasks = (task, gone, half_gone)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnectedError
    finally:
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # Break the reference cycle of exception, frame and task, which would delay the release of all three.
        del task, tasks, work


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
