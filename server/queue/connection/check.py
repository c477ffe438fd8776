"""Checks the queue before the server starts."""

import asyncio

from server.queue.connection.access import Access
from server.queue.connection.broker import Broker


def check_access(access: Access) -> None:
    """Connect, declare streams, and disconnect. Raises ConfigError, in one line."""
    asyncio.run(_check(access))


async def _check(access: Access) -> None:
    broker = Broker(access)
    await broker.connect()
    await broker.close()
