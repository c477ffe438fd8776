"""The process: uvicorn around the application, its listening line, its end and its exit code."""

import asyncio
import socket
import sys

import uvicorn

from server.app import create_app
from server.engine_port import Engine
from server.settings import Settings


class Server(uvicorn.Server):
    """Says where it listens, since port 0 takes a free one."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        print(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)


def serve(settings: Settings, engine: Engine) -> int:
    """Serve until a signal or the engine's death; the exit code."""
    config = uvicorn.Config(
        create_app(settings, engine),
        host=settings.host,
        port=settings.port,
        http="h11",
        ws="none",
        access_log=False,
        log_level=settings.log_level,
        server_header=False,
        backlog=4096,
        timeout_keep_alive=settings.keep_alive_seconds,
        h11_max_incomplete_event_size=settings.max_header_bytes,
    )
    return asyncio.run(_run(Server(config), engine))


async def _run(server: Server, engine: Engine) -> int:
    death = asyncio.create_task(engine.wait_dead())
    death.add_done_callback(lambda _: setattr(server, "should_exit", True))
    try:
        await server.serve()
    finally:
        died = death.done()
        death.cancel()
    if died:
        print(f"ideoserve: {death.result()}", file=sys.stderr, flush=True)
    return 1 if died else 0
