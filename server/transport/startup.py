"""Probes before the application exists, while its checkpoint is downloaded."""

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator

import uvicorn
from fastapi.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from server.observability import logs
from server.schemas.errors import ApiError
from server.settings.settings import Settings
from server.transport.middleware import ErrorMiddleware, RequestMiddleware
from server.transport.server import uvicorn_config

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# How long connections may stay open at the end: 2 seconds.
LAST_CHECKS, CHECK_SECONDS = 20, 0.1


@contextlib.contextmanager
def answering_probes(settings: Settings, sockets: list[socket.socket]) -> Iterator[None]:
    """Serve the sockets from a thread: `/healthz` gets 200, everything else 503. Signals exit at once.

    The sockets stay open, so that connections made after the block wait for the application.
    """
    logs.configure(settings.log_level)
    app = RequestMiddleware(
        ErrorMiddleware(_probes, settings),
        is_closing=lambda: True,
        finish=lambda record: logs.log_request(record, settings.log_prompts),
    )
    config = uvicorn_config(app, settings)
    config.lifespan = "off"
    server = _ProbeServer(config)
    copies = [each.dup() for each in sockets]
    thread = threading.Thread(target=server.run, args=(copies,), daemon=True)
    # An exception would wait for the download to end; without a handler, process 1 of a container ignores it.
    previous = {number: signal.signal(number, lambda *_: os._exit(0)) for number in SIGNALS}
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()
        for number, handler in previous.items():
            signal.signal(number, handler)


class _ProbeServer(uvicorn.Server):
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer on the accepted connections first: uvicorn would reset those whose request is on its way."""
        for server in self.servers:
            server.close()
        for _ in range(LAST_CHECKS):
            await asyncio.sleep(CHECK_SECONDS)
            if not self.server_state.connections:
                break
        await super().shutdown(sockets)


async def _probes(scope: Scope, receive: Receive, send: Send) -> None:
    """Raises ApiError 503."""
    if scope["path"] != "/healthz":
        raise ApiError(503, "model_not_ready", "The checkpoint is being downloaded.", retry_after=30)
    await JSONResponse({"status": "ok"})(scope, receive, send)
