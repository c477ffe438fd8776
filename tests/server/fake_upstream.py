"""Fake upstreams: each checks a request as the real service would, then sends the test's response, or
misbehaves."""

import gzip
import json
import ssl
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import HTTP
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

SECRET = "s3cret-of-a-test"
BOMB_BYTES = 128 << 20


class Asked(NamedTuple):
    path: str
    headers: EmailMessage | Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def asks_for_little(self) -> bool:
        """No compression, and no cookie although every response sets one."""
        return bool(self.headers["accept-encoding"] == "identity" and self.headers["cookie"] is None)

    @property
    def media(self) -> tuple[str, bytes]:
        """Content type and bytes of the multipart field `media`."""
        head = f"Content-Type: {self.headers['content-type']}\r\n\r\n".encode()
        parts = BytesParser(policy=HTTP).parsebytes(head + self.body).iter_parts()
        part = next(part for part in parts if part.get_param("name", header="content-disposition") == "media")
        data = part.get_payload(decode=True)
        assert isinstance(data, bytes)
        return part.get_content_type(), data


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *args: object) -> None:
        """Ignores clients that disconnect."""


Reply = Callable[["Handler"], None]


class FakeUpstream:
    """Responds with the replies in `next`, one for each request, then with `answer`."""

    def __init__(self, check: Callable[[Asked], bool], tls: ssl.SSLContext | None = None) -> None:
        self.check = check
        self.answer: Any = {}
        self.next: deque[Reply] = deque()
        self.asked: list[Asked] = []
        self.wrong: list[Asked] = []
        self.arrived = threading.Semaphore(0)
        self.hung_up = threading.Semaphore(0)
        self.release = threading.Event()
        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.upstream = self  # type: ignore[attr-defined]
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()

    def reset(self, answer: Any) -> None:
        self.answer = answer
        self.asked.clear()
        self.next.clear()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        upstream: FakeUpstream = self.server.upstream  # type: ignore[attr-defined]
        asked = Asked(self.path, self.headers, self.rfile.read(int(self.headers["content-length"])))
        upstream.asked.append(asked)
        upstream.arrived.release()
        if not (asked.asks_for_little and upstream.check(asked)):
            upstream.wrong.append(asked)
            self.reply({"error": "not what this API takes"}, 422)
        elif upstream.next:
            upstream.next.popleft()(self)
        else:
            self.reply(upstream.answer)

    def reply(self, body: Any, status: int = 200) -> None:
        self.send(json.dumps(body).encode(), status)

    def send(self, body: bytes, status: int = 200, encoding: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Set-Cookie", "visitor=1")
        if encoding:
            self.send_header("Content-Encoding", encoding)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def hangs(handler: Handler) -> None:
    """Sends nothing until the client disconnects."""
    while handler.connection.recv(4096):
        pass
    handler.close_connection = True
    handler.server.upstream.hung_up.release()  # type: ignore[attr-defined]


def held(handler: Handler) -> None:
    """Responds once the test sets `release`."""
    upstream: FakeUpstream = handler.server.upstream  # type: ignore[attr-defined]
    upstream.release.wait(30)
    handler.reply(upstream.answer)


def drips(handler: Handler) -> None:
    """Sends the head, but never the whole body."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
    hangs(handler)


def drops(handler: Handler) -> None:
    handler.close_connection = True


def fails(handler: Handler) -> None:
    handler.reply({"error": f"{SECRET} in a traceback"}, 500)


def redirects(handler: Handler) -> None:
    """Redirects to an address that must not receive the key."""
    handler.send_response(307)
    handler.send_header("Location", "/elsewhere")
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def garbles(handler: Handler) -> None:
    handler.send(b"<html>\xff</html>")


def floods(handler: Handler) -> None:
    """The correct response, followed by 2 MiB of blanks."""
    upstream: FakeUpstream = handler.server.upstream  # type: ignore[attr-defined]
    handler.send(json.dumps(upstream.answer).encode() + b" " * (2 << 20))


def compresses(handler: Handler) -> None:
    """The correct response, compressed without being asked."""
    upstream: FakeUpstream = handler.server.upstream  # type: ignore[attr-defined]
    handler.send(gzip.compress(json.dumps(upstream.answer).encode()), encoding="gzip")


@cache
def bomb() -> bytes:
    """A few kB that decompress to BOMB_BYTES in two passes."""
    return gzip.compress(gzip.compress(b" " * BOMB_BYTES, 1))


def explodes(handler: Handler) -> None:
    handler.send(bomb(), encoding="gzip, gzip")


def trickles(handler: Handler) -> None:
    """One byte at a time for as long as the client reads."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    repeat(handler, b" ", every=0.05)


def never_ends(handler: Handler) -> None:
    """An HTTP/1.0 body without a length, until the connection closes."""
    upstream: FakeUpstream = handler.server.upstream  # type: ignore[attr-defined]
    handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n" + json.dumps(upstream.answer).encode())
    repeat(handler, b" " * 65536)


def boasts(handler: Handler) -> None:
    """An endless head."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    repeat(handler, b"X-Boast: " + b"!" * 1000 + b"\r\n")


def whispers(handler: Handler) -> None:
    """An endless head, one byte at a time."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Whisper: ")
    repeat(handler, b"a", every=0.05)


def continues(handler: Handler) -> None:
    """Only informational responses."""
    repeat(handler, b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)


def repeat(handler: Handler, data: bytes, every: float = 0) -> None:
    """Repeats the data until the client disconnects."""
    handler.close_connection = True
    pause = threading.Event()
    with suppress(OSError):
        while not pause.wait(every):
            handler.wfile.write(data)


def nests(handler: Handler) -> None:
    handler.send(b'{"output":' * 50_000)


def litters(handler: Handler) -> None:
    """As many useless values as fit."""
    items = b",".join([b"{}"] * 330_000)
    handler.send(b'{"output":[%b]}' % items)


def crumbles(handler: Handler) -> None:
    """The correct response in chunks of one byte, followed by as many blanks as fit."""
    upstream: FakeUpstream = handler.server.upstream  # type: ignore[attr-defined]
    body = json.dumps(upstream.answer).encode().ljust(20_000)
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    handler.wfile.write(b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n")


def says(body: Any) -> Reply:
    return lambda handler: handler.reply(body)


MISBEHAVIOURS: dict[str, Reply] = {
    "hangs": hangs,
    "drips": drips,
    "drops": drops,
    "fails": fails,
    "redirects": redirects,
    "garbles": garbles,
    "floods": floods,
    "compresses": compresses,
    "explodes": explodes,
    "trickles": trickles,
    "never ends": never_ends,
    "boasts": boasts,
    "nests": nests,
    "litters": litters,
    "lies": says({"json_prompt": [1], "output": [], "flagged": "no", "choices": []}),
    "says nothing": says(None),
}


@contextmanager
def upstream(check: Callable[[Asked], bool], answer: Any) -> Iterator[FakeUpstream]:
    fake = FakeUpstream(check)
    fake.answer = answer
    yield fake
    fake.close()


def is_json(asked: Asked) -> bool:
    return bool(asked.headers["content-type"] == "application/json")
