"""Hostile and broken clients."""

import resource
import socket
import time
from collections.abc import Callable
from contextlib import suppress

import httpx
import pytest
from pydantic_core import from_json

from server.schemas.errors import ApiError
from server.schemas.images import ImageRequest
from server.transport.body import parse
from tests.server.process import HANG, ServerProcess, until
from tests.server.raw import BODY, HEAD, connection, everything
from tests.server.routes.test_errors import check

CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
TINY_CHUNKS = b"1\r\n \r\n" * 40_000
TOO_LONG = ("string_above_max_length", "json_prompt")
Start = Callable[..., ServerProcess]


def answer(client: socket.socket) -> None:
    """Read the response of one successful `GET /healthz`."""
    received = b""
    while not received.endswith(b"}"):
        received += client.recv(65536) or pytest.fail("closed")
    assert received.startswith(b"HTTP/1.1 200")


def check_alive(server: ServerProcess) -> None:
    assert httpx.get(f"{server.url}/healthz", timeout=HANG).status_code == 200
    assert not server.log_lines(level="error")


def test_slow_body(start: Start) -> None:
    server = start("--body-timeout-seconds", "0.2")
    with connection(server, HEAD + b'Content-Length: 99\r\n\r\n{"prompt"') as client:
        received = everything(client)
    assert received.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in received
    assert b"within 0.2 seconds" in received
    assert b"x-should-retry: false" in received
    check_alive(server)


def test_body_that_never_ends(start: Start) -> None:
    server = start("--max-body-bytes", "1024")
    with connection(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\n") as client:
        client.sendall(b"400\r\n" + b" " * 1024 + b"\r\n" + b"1\r\n \r\n")
        received = everything(client)
    assert received.startswith(b"HTTP/1.1 413 ")
    check_alive(server)


def test_a_body_of_tiny_chunks_does_not_block_the_event_loop(start: Start) -> None:
    server = start()
    server.http.get("/_fake/stall")
    with connection(server, HEAD + CHUNKED) as client:
        with suppress(OSError):
            client.sendall(TINY_CHUNKS)
        received = everything(client)
    assert received.startswith(b"HTTP/1.1 400 ")
    assert b"too many small chunks" in received
    assert server.http.get("/_fake/stall").json()["own"] < 0.1
    check_alive(server)


def test_tiny_chunks_after_a_refusal_close_the_connection(start: Start) -> None:
    server = start("--header-timeout-seconds", "600")
    with connection(server, HEAD.replace(b"json", b"xml") + CHUNKED) as client:
        assert client.recv(65536).startswith(b"HTTP/1.1 415 ")
        with suppress(OSError):
            client.sendall(TINY_CHUNKS)
        everything(client)
    check_alive(server)


def test_a_short_body_may_have_tiny_chunks(start: Start) -> None:
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in b" " * 1900 + BODY)
    ending = b"0\r\n\r\n"
    with connection(start(), HEAD + b"Connection: close\r\n" + CHUNKED) as client:
        client.sendall(chunks + ending)
        assert everything(client).startswith(b"HTTP/1.1 200 ")


def test_rest_of_a_refused_body_has_a_timeout(start: Start) -> None:
    server = start("--header-timeout-seconds", "0.2")
    head = HEAD.replace(b"application/json", b"text/plain")
    with connection(server, head + b"Content-Length: 99999\r\n\r\nx") as client:
        received = everything(client)
    assert received.startswith(b"HTTP/1.1 415 ")


def test_slow_headers(start: Start) -> None:
    """Of no request, of a first request, and of a second request on the same connection."""
    server = start("--header-timeout-seconds", "0.2")
    request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
    for sent in (b"", request + b"X-A: ", request + b"\r\nGET /he"):
        with connection(server, sent) as client:
            everything(client)
    check_alive(server)


def test_keep_alive_pause_is_not_slow_headers(start: Start) -> None:
    server = start("--header-timeout-seconds", "0.1", "--keep-alive-seconds", "60")
    request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    with connection(server, request) as client, connection(server) as idle:
        answer(client)
        everything(idle)  # by now the header timeout has passed
        client.sendall(request)
        answer(client)


def test_client_that_does_not_read(start: Start) -> None:
    """Responses that fill the buffers of the socket, for a client that never reads."""
    server = start(
        "--write-timeout-seconds", "0.5", "--png-compress-level", "0", "--header-timeout-seconds", "600"
    )
    body = b'{"prompt":"a","size":"256x256","n":10,"num_inference_steps":1,"stream":true}'
    head = HEAD + b"Content-Length: %d\r\n\r\n" % len(body)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        client.sendall((head + body) * 20)
        until(lambda: bool(server.log_lines(message="request", outcome="client_disconnected")))
    until(lambda: server.state()["running"] == 0)


DIGITS = b"9" * 4000
BODIES = {
    "unknown fields": (b",".join(b'"%x":0' % number for number in range(100_000)), "unknown_parameter", "0"),
    "a schedule": (b'"guidance_schedule":[' + b"0," * 500_000 + b"0]", "invalid_value", "guidance_schedule"),
    "seed": (b'"seed":' + DIGITS, "invalid_value", "seed"),
    "width": (b'"width":' + DIGITS, "invalid_value", "width"),
    "mu": (b'"mu":' + DIGITS, "invalid_type", "mu"),
    "exponent": (b'"mu":1e' + DIGITS, "invalid_value", "mu"),
    "digits": (b'"seed":' + b"9" * 1_000_000, "invalid_json", None),
    "model": (b'"model":"' + b"9" * 1_000_000 + b'"', "model_not_found", "model"),
    "size": (b'"size":"' + b"9" * 1_000_000 + b'"', "string_above_max_length", "size"),
    "numbers": (b'"json_prompt":{"a":[' + DIGITS + (b"," + DIGITS) * 250 + b"]}", *TOO_LONG),
}


@pytest.mark.parametrize("name", BODIES)
def test_long_lists_and_numbers_do_not_stall_the_loop(server: ServerProcess, name: str) -> None:
    fields, code, param = BODIES[name]
    body = (b'{"prompt":"a",' if b"prompt" not in fields else b"{") + fields + b"}"
    server.http.get("/_fake/stall")
    response = server.http.post("/v1/images", content=body, headers={"Content-Type": "application/json"})
    check(response, response.status_code, code, param)
    assert len(response.content) < 500
    assert server.http.get("/_fake/stall").json()["own"] < 0.03


def test_the_first_unknown_field_is_enough() -> None:
    """An error for each of 100,000 fields took fifteen times as long as parsing the body."""
    body = b"{" + BODIES["unknown fields"][0] + b"}"

    def seconds(work: Callable[[], object]) -> float:
        started = time.process_time()
        with suppress(ApiError):
            work()
        return time.process_time() - started

    reading = min(seconds(lambda: from_json(body)) for _ in range(3))
    assert min(seconds(lambda: parse(body, ImageRequest)) for _ in range(3)) < 5 * reading


def test_too_many_headers(server: ServerProcess) -> None:
    response = server.http.get("/healthz", headers=[(f"X-{number}", "1") for number in range(200)])
    assert (response.status_code, response.json()["error"]["code"]) == (431, "too_many_headers")


def test_head_too_large(server: ServerProcess) -> None:
    with connection(server, b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 200_000) as client:
        received = everything(client)
    assert received.startswith(b"HTTP/1.1 400 ")
    assert b'{"error":{' in received
    check_alive(server)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /healthz HTTP/1.1\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
        HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nA\x00B: 1\r\n\r\n",
    ],
)
def test_no_http(server: ServerProcess, sent: bytes) -> None:
    with connection(server, sent) as client:
        received = everything(client)
    status = received.split(b" ")[1] if received else b""
    assert status in (b"", b"400", b"501")
    check_alive(server)


def test_path_of_strange_characters(server: ServerProcess) -> None:
    for path in ("/%00", "/%ff%fe", "/v1/models/%0d%0aX-Injected:1", "/..%2f..%2fetc/passwd"):
        response = httpx.get(server.url + path, timeout=HANG)
        assert response.status_code == 404
        assert "x-injected" not in response.headers
    check_alive(server)


def test_ten_thousand_idle_connections(start: Start) -> None:
    """Half of them without any input, half in the middle of their headers."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard >= 11_000, "this test needs 11,000 file descriptors (ulimit -Hn)"
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    server = start("--header-timeout-seconds", "600", "--max-connections", "20000")
    clients: list[socket.socket] = []
    try:
        for number in range(10_000):
            # Each source address has its own range of ports.
            source = (f"127.0.0.{2 + number // 5000}", 0)
            clients.append(socket.create_connection(("127.0.0.1", server.port), HANG, source))
            if number % 2:
                clients[-1].sendall(b"GET /healthz HTTP/1.1\r\n")
        with httpx.Client(timeout=HANG) as http:
            assert http.get(f"{server.url}/healthz").status_code == 200
        assert server.metric("process_open_fds") > 10_000
        assert server.create().status_code == 200
    finally:
        for client in clients:
            client.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    until(lambda: server.metric("process_open_fds") < 100)
