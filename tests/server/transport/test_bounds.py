"""Limits over all clients: connections, memory of bodies, memory of unread responses."""

import json
import select
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress

import httpx

from server.settings.settings import Settings
from server.transport.connection import SPARE_CONNECTIONS
from server.transport.server import OTHER_DESCRIPTORS, connection_type
from tests.server.process import HANG, ServerProcess, small, until
from tests.server.raw import HEAD, answers, connection, everything, get, post

Start = Callable[..., ServerProcess]
LARGE = 400_000


@contextmanager
def connections(server: ServerProcess, count: int, sent: bytes = b"") -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        yield [stack.enter_context(connection(server, sent)) for _ in range(count)]


def memory(server: ServerProcess) -> float:
    return server.metric("process_resident_memory_bytes")


def large(server: ServerProcess) -> httpx.Response:
    return server.create(style="a" * LARGE)


def test_unfinished_bodies_are_limited_together(start: Start) -> None:
    server = start("--max-inflight-body-bytes", "2000000", "--body-timeout-seconds", "600")
    assert large(server).status_code == 200
    before = memory(server)
    half = HEAD + b"Content-Length: %d\r\n\r\n" % (LARGE + 1) + b" " * LARGE
    with connections(server, 150, half) as clients:
        until(lambda: len(select.select(clients, [], [], 0)[0]) == 150 - 5)
        refused = select.select(clients, [], [], 0)[0]
        (answer,) = answers(everything(refused[0]))
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (503, "body_memory_full")
        assert b"retry-after: 1\r\n" in answer.head
        assert memory(server) < before + (25 << 20)
        assert large(server).json()["error"]["code"] == "body_memory_full"
        assert server.create().status_code == 200
        assert server.metric('ideoserve_rejected_total{reason="body_memory_full"}') == 146
    until(lambda: large(server).status_code == 200)


def test_a_body_is_freed_once_it_is_parsed(start: Start) -> None:
    """By memory use and by the limit, which two bodies fill."""
    server = start("--max-inflight-body-bytes", "1048576")
    assert large(server).status_code == 200
    before = memory(server)
    with ThreadPoolExecutor(80) as pool:
        body = small(prompt="hold: a", num_inference_steps=1, style="a" * LARGE)
        waiting = []
        for number in range(80):
            key = {"Idempotency-Key": str(number)}
            waiting.append(pool.submit(server.create, key, **body))
            server.wait(running=number + 1)
        assert memory(server) < before + (16 << 20)
        server.release()
        assert {answer.result().status_code for answer in waiting} == {200}


def ask(client: socket.socket) -> None:
    """One response on a connection that stays open."""
    client.sendall(get())
    received = b""
    while not received.endswith(b"}"):
        received += client.recv(65536) or b"closed}"
    assert received.startswith(b"HTTP/1.1 200 ")


def test_connections_above_the_limit_serve_only_probes(start: Start) -> None:
    server = start("--max-connections", "8", "--header-timeout-seconds", "600")
    with connections(server, 8) as clients:
        for client in clients:
            ask(client)
        with connection(server, post()) as late:
            (answer,) = answers(everything(late))
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (503, "too_many_connections")
        assert b"retry-after: 1\r\n" in answer.head
        for path in ("/healthz", "/readyz", "/metrics"):
            probe = httpx.get(server.url + path, timeout=HANG)
            assert (probe.status_code, probe.headers["connection"]) == (200, "close")
        ask(clients[0])
    until(lambda: server.create().status_code == 200)


def test_idle_connections_above_the_limit_are_closed(start: Start) -> None:
    """At once if no spare connection is left, else after a second."""
    server = start("--max-connections", "8", "--header-timeout-seconds", "600")
    with connections(server, 8) as clients:
        for client in clients:
            ask(client)
        with connections(server, SPARE_CONNECTIONS) as spare, connections(server, 4) as beyond:
            for client in beyond:
                with suppress(ConnectionError):
                    client.sendall(get())
            assert [everything(client) for client in beyond + spare] == [b""] * (4 + SPARE_CONNECTIONS)
        assert httpx.get(f"{server.url}/healthz", timeout=HANG).status_code == 200
        ask(clients[-1])


def test_the_connection_limit_follows_the_file_descriptor_limit() -> None:
    settings = Settings(model="m", max_connections=1000)
    assert connection_type(settings, OTHER_DESCRIPTORS + 300).max_connections == 300
    assert connection_type(settings, 1 << 20).max_connections == 1000


def test_unread_responses_are_limited_together(start: Start) -> None:
    """The client that has been reading longest is disconnected, the latest is not."""
    server = start("--max-unsent-bytes", str(6 << 20), "--png-compress-level", "0")
    body = small(size="256x256", n=10, seed=1)
    whole = 2 * len(server.create(**body).content)
    with ExitStack() as stack:
        readers = [stack.enter_context(slow_reader(server, body)) for _ in range(4)]
        for reader in readers:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        received = [len(everything(reader)) for reader in readers]
    assert received[0] < whole < received[-1]


@contextmanager
def slow_reader(server: ServerProcess, body: dict[str, object]) -> Iterator[socket.socket]:
    """Two responses are waiting: the kernel's buffer holds about one."""
    before = len(server.log_lines(message="request", outcome="ok"))
    content = json.dumps(body).encode()
    with socket.socket() as client:
        client.settimeout(HANG)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        client.sendall(post(body=content) + post(b"Connection: close\r\n", content))
        until(lambda: len(server.log_lines(message="request", outcome="ok")) == before + 2)
        yield client
