"""Work that ends when the client does."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Receive

from server.schemas.errors import ClientDisconnectedError
from server.transport.connection import connection_of

T = TypeVar("T")


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; cancels it and raises ClientDisconnectedError when the client goes away first.

    A client that only ends its sending side counts as gone: nothing tells it from one whose process died.
    The body must have been read: what else arrives can only be a disconnect.
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
        # An exception holds this frame; it would hold the task, which holds the exception, and all with them.
        del task, tasks, work


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
