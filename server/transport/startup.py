"""Probes before the application exists, while its checkpoint is downloaded."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from server.observability import logs
from server.schemas.errors import ApiError
from server.settings.settings import Settings
from server.transport.middleware import ErrorMiddleware, RequestMiddleware
from server.transport.server import uvicorn_config


@contextmanager
def answering_probes(settings: Settings, sockets: list[socket.socket]) -> Iterator[None]:
    """Serve the sockets from a thread: `/healthz` gets 200, everything else 503. SIGTERM exits at once.

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
    server = uvicorn.Server(config)
    copies = [each.dup() for each in sockets]
    thread = threading.Thread(target=server.run, args=(copies,), daemon=True)
    # An exception would wait for the download to end; without a handler, process 1 of a container ignores it.
    previous = signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()
        signal.signal(signal.SIGTERM, previous)


async def _probes(scope: Scope, receive: Receive, send: Send) -> None:
    """Raises ApiError 503."""
    if scope["path"] != "/healthz":
        raise ApiError(503, "model_not_ready", "The checkpoint is being downloaded.", retry_after=30)
    await JSONResponse({"status": "ok"})(scope, receive, send)
