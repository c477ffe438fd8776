"""A disconnect aborts the request, in every response format."""

import asyncio
import gc
import json
import socket
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.requests import Request

from server.transport.disconnect import unless_disconnected
from tests.server.connections import connection
from tests.server.process import HANG, ServerProcess, small


def connect(server: ServerProcess, accept: str, word: str = "hold") -> socket.socket:
    body = json.dumps(small(prompt=f"{word}: a")).encode()
    head = (
        f"POST /v1/images HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    client = socket.create_connection(("127.0.0.1", server.port), timeout=HANG)
    client.sendall(head.encode() + body)
    return client


@pytest.mark.parametrize("accept", ["application/json", "image/png", "text/event-stream"])
@pytest.mark.parametrize("how", ["close", "half-close", "reset"])
def test_disconnect_aborts(server: ServerProcess, accept: str, how: str) -> None:
    aborted = server.state()["aborted"]
    counted = server.metric("ideoserve_aborts_total")
    client = connect(server, accept)
    server.wait(running=1)
    if how == "half-close":
        client.shutdown(socket.SHUT_WR)
    elif how == "reset":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
    else:
        client.close()
    server.wait(running=0, aborted=aborted + 1)
    client.close()
    lines = server.logged(message="request", outcome="client_disconnected")
    assert lines[-1]["mode"] in ("json", "image", "events")
    assert server.metric("ideoserve_aborts_total") == counted + 1
    assert server.metric("ideoserve_backlog_seconds") == 0


def test_disconnect_in_the_middle_of_a_body(server: ServerProcess) -> None:
    before = len(server.state()["requests"])
    client = socket.create_connection(("127.0.0.1", server.port), timeout=HANG)
    client.sendall(
        b"POST /v1/images HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: 99\r\n\r\n{"
    )
    client.close()
    assert server.create().status_code == 200
    assert len(server.state()["requests"]) == before + 1
    assert not server.log_lines(level="error")


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Objects are freed by reference counts alone."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
def test_a_failure_is_freed_at_once() -> None:
    """An exception holds its frames: a task among their variables would hold the exception in a cycle."""

    class Failure(Exception):
        pass

    async def fail() -> None:
        raise Failure

    async def wait() -> weakref.ref[Failure]:
        try:
            request = Request(
                {"type": "http", "state": {"connection": connection()}}, asyncio.Queue[Any]().get
            )
            await unless_disconnected(request, fail())
        except Failure as error:
            return weakref.ref(error)
        raise AssertionError

    assert asyncio.run(wait())() is None
