"""Checks the queue before the server starts."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future

from server.queue.connection.access import Access
from server.queue.connection.broker import Broker
from server.settings.config_error import ConfigError

CHECK_SECONDS = 20.0
Declare = Callable[[Broker], Awaitable[None]]


def check_access(access: Access, declare: Declare | None = None) -> None:
    """Connect, declare streams and what `declare` adds, and disconnect. Raises ConfigError, in one line."""
    checked: Future[None] = Future()
    # In a thread that may be left behind: after a failed TLS handshake the client waits for ever.
    threading.Thread(target=_run, args=(access, declare, checked), daemon=True).start()
    try:
        checked.result(CHECK_SECONDS)
    except TimeoutError:
        raise ConfigError(
            f"--queue: {access} did not answer within {CHECK_SECONDS:g} s; if it requires TLS, its "
            "certificate may not be trusted: --queue-tls-ca-file"
        ) from None


def _run(access: Access, declare: Declare | None, checked: "Future[None]") -> None:
    try:
        checked.set_result(asyncio.run(_check(access, declare)))
    except Exception as error:
        checked.set_exception(error)


async def _check(access: Access, declare: Declare | None) -> None:
    broker = Broker(access)
    await broker.connect()
    try:
        if declare is not None:
            await declare(broker)
    finally:
        await broker.close()
