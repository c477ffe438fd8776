"""Event streams by their raw bytes: parsers differ in what they make of comments and blank lines."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.server import raw, sse
from tests.server.process import ServerProcess, small, until

Start = Callable[..., ServerProcess]


def post(**body: Any) -> bytes:
    return raw.post(body=json.dumps(small(stream=True, **body)).encode())


def stream(server: ServerProcess, headers: dict[str, str] | None = None, **body: Any) -> bytes:
    """The body of one response that is an event stream."""
    response = server.create(headers, stream=True, **body)
    assert response.headers["content-type"].startswith("text/event-stream")
    return response.content


def blocks(body: bytes) -> list[list[str]]:
    """The lines of each block that ends in a blank line."""
    *ended, rest = body.decode().split("\n\n")
    assert all(line.startswith(":") for line in rest.splitlines()), "only comments follow the last event"
    return [block.split("\n") for block in ended]


def check_blocks(body: bytes) -> None:
    """A blank line dispatches an event: without data it would be an empty event to some clients."""
    assert body.isascii(), "some parsers end lines at U+2028"
    for block in blocks(body):
        assert any(line.startswith("data: ") for line in block), block
        assert all(line.startswith((":", "event: ", "data: ")) for line in block), block


def comments(body: bytes) -> list[str]:
    return [line for line in body.decode().splitlines() if line.startswith(":")]


MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "several images": {"n": 3},
    "progress": {"progress": True},
    "previews": {"partial_images": 3},
    "previews and progress": {"partial_images": 2, "progress": True, "n": 2},
    "error at the first step": {"prompt": "fail: a"},
}


@pytest.mark.parametrize("fields", MODES.values(), ids=MODES)
def test_every_block_has_data(server: ServerProcess, fields: dict[str, Any]) -> None:
    body = stream(server, **fields)
    check_blocks(body)
    assert body.startswith(b": accepted\n")
    assert blocks(body)


def test_the_blocks_of_a_pinged_stream_have_data(start: Start) -> None:
    server = start("--ping-seconds", "0.02")
    received = b""
    with server.http.stream("POST", "/v1/images", json=small(prompt="hold: a", stream=True)) as response:
        for chunk in response.iter_raw():
            received += chunk
            if received.count(b": ping\n") == 3:
                server.release()
    check_blocks(received)
    assert b": ping\n: ping\n" in received


def test_the_blocks_of_an_error_at_the_end_have_data(start: Start) -> None:
    server = start()
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(stream, server, {"X-Request-Timeout": "3"}, prompt="hold: a")
        server.wait(running=1)
        body = waiting.result()
    check_blocks(body)
    (error,) = sse.named(body.decode().split("\n"))
    assert (error.name, error.data["error"]["code"]) == ("error", "deadline_exceeded")


def test_the_blocks_of_a_repeated_answer_have_data(server: ServerProcess) -> None:
    key = {"Idempotency-Key": "repeated"}
    first, second = (stream(server, key, partial_images=2, n=2) for _ in range(2))
    check_blocks(second)
    completed = "image_generation.completed"
    assert [event.name for event in sse.named(second.decode().split("\n"))] == [completed] * 2
    assert ": progress 0 1/20" in comments(first)
    assert comments(second)[0] == ": accepted"


def test_the_first_bytes_arrive_before_any_event(server: ServerProcess) -> None:
    """Proxies and clients with a timeout for the first byte see a response that is alive."""
    with raw.connection(server, post(prompt="hold: a")) as client:
        received = b""
        while b": progress" not in received:
            received += client.recv(65536)
        assert b": accepted\n" in received
        assert b"data:" not in received
        server.wait(running=1)
        server.release()
        assert b"image_generation.completed" in read_to_end(client)
    until(lambda: server.state()["running"] == 0)


def read_to_end(client: Any) -> bytes:
    """Of a chunked body."""
    return b"".join(_chunks(client))


def _chunks(client: Any) -> Iterator[bytes]:
    last = b""
    while not last.endswith(b"0\r\n\r\n"):
        last = client.recv(65536)
        yield last


def test_the_place_in_the_queue_is_reported(server: ServerProcess) -> None:
    """Once a second while a request with progress has not begun."""

    def first(**body: Any) -> Any:
        with server.http.stream("POST", "/v1/images", json=small(stream=True, **body)) as response:
            return next(event for event in sse.read(response.iter_lines()) if event.name)

    with ThreadPoolExecutor() as pool:
        earlier = pool.submit(first, prompt="wait: a", seed=1)
        server.wait(running=1)
        event = first(prompt="wait: a", progress=True, seed=2)
        server.release()
        assert earlier.result().name == "image_generation.completed"
    assert event.name == "image_generation.queued"
    assert event.data == {"type": event.name, "position": 2, "predicted_seconds": 2.0}
