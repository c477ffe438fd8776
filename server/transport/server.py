"""The uvicorn server: listening sockets, graceful shutdown and exit code."""

import asyncio
import contextlib
import errno
import gc
import resource
import socket
import sys
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from server.engine_port import Engine
from server.observability import logs
from server.settings.config_error import ConfigError
from server.settings.settings import Settings
from server.transport.connection import GuardedConnection
from server.transport.lifecycle import Lifecycle

OTHER_DESCRIPTORS = 256  # file descriptors for files, pipes, upstream calls and spare connections
BACKLOG = 4096  # connections that wait to be accepted
# Errors for a host name with addresses of both families where one family is not configured.
UNAVAILABLE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
LAST_SECONDS = 2.0  # to answer the requests that a second signal ends


class DrainingServer(uvicorn.Server):
    """On the first signal, readiness fails; after the drain delay new requests are refused, requests in
    flight finish and the process exits. A second signal answers requests in flight with an error at once."""

    def __init__(self, config: uvicorn.Config, lifecycle: Lifecycle, settings: Settings) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self._settings = settings
        self._drain: asyncio.Task[None] | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        print(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Also answer the requests in flight on a forced exit, and shut down the application then."""
        await super().shutdown(sockets)
        running = list(self.server_state.tasks)
        for task in running:
            task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_SECONDS):
                await asyncio.gather(*running, return_exceptions=True)
                if self.force_exit:
                    await self.lifespan.shutdown()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn's method would raise the signal again at the end, instead of exit code 0.
        self._loop.call_soon_threadsafe(self._on_signal)

    def _on_signal(self) -> None:
        if self._drain is None:
            self._drain = asyncio.create_task(self._finish())
        else:
            self.should_exit = self.force_exit = True

    async def _finish(self) -> None:
        self._lifecycle.begin_shutdown()
        await asyncio.sleep(self._settings.drain_delay_seconds)
        self._lifecycle.drain()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._lifecycle.wait_idle(), self._settings.max_request_seconds)
        self.should_exit = True


def serve(
    app: FastAPI, settings: Settings, lifecycle: Lifecycle, engine: Engine, sockets: list[socket.socket]
) -> int:
    """Serve until a signal or the end of the engine. Returns the exit code."""
    logs.configure(settings.log_level)
    config = uvicorn_config(app, settings)
    # Exclude imported objects from garbage collection: a full collection would stall the event loop.
    gc.collect()
    gc.freeze()
    return asyncio.run(_run(DrainingServer(config, lifecycle, settings), engine, sockets))


async def _run(server: uvicorn.Server, engine: Engine, sockets: list[socket.socket]) -> int:
    death = asyncio.create_task(engine.wait_dead())
    death.add_done_callback(lambda _: setattr(server, "should_exit", True))
    await server.serve(sockets)
    if death.done():
        print(f"ideoserve: {death.result()}", file=sys.stderr, flush=True)
        return death.result().exit_code
    death.cancel()
    return 0


def uvicorn_config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=connection_type(settings, _raise_descriptor_limit()),
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=int(settings.write_timeout_seconds),
        h11_max_incomplete_event_size=settings.max_header_bytes,
    )


def connection_type(settings: Settings, descriptors: int) -> type[GuardedConnection]:
    class Connection(GuardedConnection):
        header_seconds = settings.header_timeout_seconds
        write_seconds = settings.write_timeout_seconds
        max_connections = min(settings.max_connections, max(1, descriptors - OTHER_DESCRIPTORS))
        max_unsent_bytes = settings.max_unsent_bytes

    return Connection


def _raise_descriptor_limit() -> int:
    """Raise the soft limit of open files, often 1024, to the hard limit. Returns the limit."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def listen(settings: Settings) -> list[socket.socket]:
    """Listen on each address of the host. `::` serves IPv4 too, and IPv4 alone where IPv6 is disabled.

    Raises ConfigError.
    """
    host, port = settings.host, settings.port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        opened = [_listen(family, address) for family, address in dict.fromkeys((f, a) for f, *_, a in found)]
    except OSError as error:
        raise ConfigError(f"--host {host} --port {port}: {error.strerror}") from None
    sockets = [each for each in opened if each]
    if not sockets and host == "::":
        return listen(settings.model_copy(update={"host": "0.0.0.0"}))
    if not sockets:
        raise ConfigError(f"--host {host}: this machine does not have the address")
    return sockets


def _listen(family: int, address: tuple[Any, ...]) -> socket.socket | None:
    """None if the address is not available. Raises OSError."""
    is_dual = address[0] == "::" and socket.has_dualstack_ipv6()
    try:
        listening = socket.create_server(address, family=family, backlog=BACKLOG, dualstack_ipv6=is_dual)
    except OSError as error:
        if error.errno in UNAVAILABLE:
            return None
        raise
    # Accepted connections inherit this; asyncio sets it only on sockets that name their protocol. Otherwise
    # the body of a response waits for the acknowledgement of its headers, which clients delay by 40 ms.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening
