"""Other people's services on this machine: each checks what it is sent as the real one would, then answers
what the test says, or misbehaves."""

import json
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

SECRET = "s3cret-of-a-test"


class Asked(NamedTuple):
    path: str
    headers: EmailMessage | Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

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
        """A caller that gave up is no news."""


Reply = Callable[["Handler"], None]


class FakeBackend:
    """Answers with `answer` and `status`, but for the replies in `next`, which come first, one a request."""

    def __init__(self, check: Callable[[Asked], bool]) -> None:
        self.check = check
        self.answer: Any = {}
        self.next: deque[Reply] = deque()
        self.asked: list[Asked] = []
        self.wrong: list[Asked] = []
        self.arrived = threading.Semaphore(0)
        self.hung_up = threading.Semaphore(0)
        self.release = threading.Event()
        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.backend = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._server.server_port}"
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
        backend: FakeBackend = self.server.backend  # type: ignore[attr-defined]
        asked = Asked(self.path, self.headers, self.rfile.read(int(self.headers["content-length"])))
        backend.asked.append(asked)
        backend.arrived.release()
        if not backend.check(asked):
            backend.wrong.append(asked)
            self.reply({"error": "not what this API takes"}, 422)
        elif backend.next:
            backend.next.popleft()(self)
        else:
            self.reply(backend.answer)

    def reply(self, body: Any, status: int = 200) -> None:
        self.send(json.dumps(body).encode(), status)

    def send(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def hangs(handler: Handler) -> None:
    """Says nothing until the other side gives up."""
    while handler.connection.recv(4096):
        pass
    handler.close_connection = True
    handler.server.backend.hung_up.release()  # type: ignore[attr-defined]


def held(handler: Handler) -> None:
    """Answers once the test releases it."""
    backend: FakeBackend = handler.server.backend  # type: ignore[attr-defined]
    backend.release.wait(30)
    handler.reply(backend.answer)


def drips(handler: Handler) -> None:
    """A head at once, then never the whole body."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
    hangs(handler)


def drops(handler: Handler) -> None:
    handler.close_connection = True


def fails(handler: Handler) -> None:
    handler.reply({"error": f"{SECRET} in a traceback"}, 500)


def redirects(handler: Handler) -> None:
    """To where a key must not follow."""
    handler.send_response(307)
    handler.send_header("Location", "/elsewhere")
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def garbles(handler: Handler) -> None:
    handler.send(b"<html>\xff</html>")


def floods(handler: Handler) -> None:
    """The right answer, and blanks for ever."""
    backend: FakeBackend = handler.server.backend  # type: ignore[attr-defined]
    handler.send(json.dumps(backend.answer).encode() + b" " * (2 << 20))


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
    "lies": says({"json_prompt": [1], "output": [], "flagged": "no", "choices": []}),
    "says nothing": says(None),
}


@contextmanager
def backend(check: Callable[[Asked], bool], answer: Any) -> Iterator[FakeBackend]:
    fake = FakeBackend(check)
    fake.answer = answer
    yield fake
    fake.close()


def is_json(asked: Asked) -> bool:
    return bool(asked.headers["content-type"] == "application/json")
