"""HTTP/1.1 over a bare socket, for what no client library sends."""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from tests.server.process import HANG, ServerProcess

HEAD = b"POST /v1/images HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
BODY = b'{"prompt": "a cat", "size": "64x64"}'
ANSWER = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r]*(.*?)\r\n\r\n", re.DOTALL)
LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


class Answer(NamedTuple):
    status: int
    head: bytes
    body: bytes


@contextmanager
def connection(server: ServerProcess, sent: bytes = b"") -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=HANG) as client:
        client.sendall(sent)
        yield client


def everything(client: socket.socket) -> bytes:
    """Until the server closes."""
    received = b""
    try:
        while chunk := client.recv(65536):
            received += chunk
    except ConnectionResetError:
        pass
    return received


def answers(received: bytes) -> list[Answer]:
    """All responses of a connection, interim ones (1xx) left out."""
    found, place = [], 0
    while match := ANSWER.match(received, place):
        length = LENGTH.search(match[2])
        place = match.end() + (int(length[1]) if length else 0)
        if match[1] != b"100":
            found.append(Answer(int(match[1]), match[2].lower(), received[match.end() : place]))
    assert place == len(received), received[place:]
    return found


def get(path: bytes = b"/healthz", headers: bytes = b"") -> bytes:
    return b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n"


def post(headers: bytes = b"", body: bytes = BODY) -> bytes:
    return HEAD + headers + b"Content-Length: %d\r\n\r\n" % len(body) + body


def post_chunked(headers: bytes = b"", extension: bytes = b"", trailer: bytes = b"") -> bytes:
    chunk = b"%x%s\r\n%s\r\n" % (len(BODY), extension, BODY)
    return HEAD + headers + b"Transfer-Encoding: chunked\r\n\r\n" + chunk + b"0\r\n" + trailer + b"\r\n"
