"""The process: uvicorn around the application, its listening line, its drain and its exit code."""

import asyncio
import contextlib
import gc
import ipaddress
import resource
import socket
import sys
from types import FrameType

import uvicorn
from fastapi import FastAPI

from server.engine_port import Engine
from server.observability import logs
from server.settings.config_error import ConfigError
from server.settings.settings import Settings
from server.transport.connection import GuardedConnection
from server.transport.lifecycle import Lifecycle

OTHER_DESCRIPTORS = 256  # files, pipes, calls of other services, and the spare connections
BACKLOG = 4096  # connections that wait to be accepted
LAST_SECONDS = 2.0  # for the answers to what a second signal ends


class DrainingServer(uvicorn.Server):
    """On a signal: readiness fails, after the delay nothing new is taken, what was accepted finishes, the
    listener closes. On a second: what still runs is answered with an error, now."""

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
        """uvicorn's, which forces an exit without a word to the clients and the application."""
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
        # Not noted in uvicorn's list of signals, which it raises again at its end: this is exit code 0.
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


def serve(app: FastAPI, settings: Settings, lifecycle: Lifecycle, engine: Engine) -> int:
    """Serve until a signal or the engine's death. Returns the exit code."""
    logs.configure(settings.log_level)
    descriptors = _raise_descriptor_limit()
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=connection_type(settings, descriptors),
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=int(settings.write_timeout_seconds),
        h11_max_incomplete_event_size=settings.max_header_bytes,
    )
    # What the imports made stays for ever; without this each full collection walks it and stalls the loop.
    gc.collect()
    gc.freeze()
    sockets = _dual_stack_sockets(settings)
    return asyncio.run(_run(DrainingServer(config, lifecycle, settings), engine, sockets))


async def _run(server: uvicorn.Server, engine: Engine, sockets: list[socket.socket] | None) -> int:
    death = asyncio.create_task(engine.wait_dead())
    death.add_done_callback(lambda _: setattr(server, "should_exit", True))
    await server.serve(sockets)
    if death.done():
        print(f"ideoserve: {death.result()}", file=sys.stderr, flush=True)
        return death.result().exit_code
    death.cancel()
    return 0


def connection_type(settings: Settings, descriptors: int) -> type[GuardedConnection]:
    class Connection(GuardedConnection):
        header_seconds = settings.header_timeout_seconds
        write_seconds = settings.write_timeout_seconds
        max_connections = min(settings.max_connections, max(1, descriptors - OTHER_DESCRIPTORS))
        max_unsent_bytes = settings.max_unsent_bytes

    return Connection


def _dual_stack_sockets(settings: Settings) -> list[socket.socket] | None:
    """For the IPv6 wildcard, a socket that also serves IPv4, unlike asyncio's. Raises ConfigError."""
    if not _is_ipv6_wildcard(settings.host):
        return None
    try:
        address = ("::", settings.port)
        return [socket.create_server(address, family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True)]
    except OSError as error:
        raise ConfigError(f"--host {settings.host} --port {settings.port}: {error.strerror}") from None


def _is_ipv6_wildcard(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.IPv6Address(host) == ipaddress.IPv6Address("::")
    return False


def _raise_descriptor_limit() -> int:
    """Each idle connection holds a descriptor; the soft limit is often only 1024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most
