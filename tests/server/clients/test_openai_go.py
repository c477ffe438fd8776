"""Event streams as older versions of the official Go client read them.

Their decoder dispatches an event at every blank line, also without data, and parses the data as JSON.
"""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.server.process import ServerProcess

MAX_LINE_BYTES = 32 << 20  # of the scanner; a longer line is an error


class Event(NamedTuple):
    type: str
    data: bytes


class StreamError(Exception):
    """An event that is an error."""


def decode(body: bytes) -> Iterator[Event]:
    event, data = "", b""
    *lines, rest = body.split(b"\n")
    assert not rest.strip(b"\r"), "the stream ends in the middle of a line"
    for line in lines:
        assert len(line) <= MAX_LINE_BYTES
        name, _, value = line.removesuffix(b"\r").partition(b":")
        value = value.removeprefix(b" ")
        if not line.removesuffix(b"\r"):
            yield Event(event, data)
            event, data = "", b""
        elif name == b"event":
            event = value.decode()
        elif name == b"data":
            data += value + b"\n"


def read(body: bytes) -> Iterator[dict[str, Any]]:
    """Fields of each event. Raises ValueError for an event without JSON, StreamError for an error."""
    for event in decode(body):
        if event.data.startswith(b"[DONE]"):
            return
        fields = json.loads(event.data)
        if "error" in fields:
            raise StreamError(fields["error"]["message"])
        assert fields["type"] == event.type
        yield fields


def stream(server: ServerProcess, **body: Any) -> bytes:
    return server.create(stream=True, **body).content


MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "previews": {"partial_images": 3},
    "progress": {"progress": True, "partial_images": 2},
    "images": {"n": 3},
}


@pytest.mark.parametrize("fields", MODES.values(), ids=MODES)
def test_events(server: ServerProcess, fields: dict[str, Any]) -> None:
    types = [event["type"] for event in read(stream(server, **fields))]
    assert types.count("image_generation.completed") == fields.get("n", 1)
    assert types.count("image_generation.partial_image") == fields.get("partial_images", 0)


def test_the_largest_image_fits_the_clients_line(server: ServerProcess) -> None:
    (event,) = read(stream(server, prompt="noise: a", size="2048x2048", num_inference_steps=1))
    assert len(event["b64_json"]) > 16 << 20


def test_an_error_is_an_error(server: ServerProcess) -> None:
    with pytest.raises(StreamError, match="The model failed"):
        list(read(stream(server, prompt="fail: a")))


def test_the_decoder_fails_on_an_empty_event() -> None:
    with pytest.raises(ValueError, match="Expecting value"):
        list(read(b": a comment\n\n"))
