"""Server-sent events as a strict reader has them."""

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple


class Event(NamedTuple):
    """`name` is empty for a comment, whose text is then `data`."""

    name: str
    data: Any


def read(lines: Iterable[str]) -> Iterator[Event]:
    name = ""
    for line in lines:
        if line.startswith(":"):
            yield Event("", line[1:].strip())
        elif line.startswith("id: "):
            pass
        elif line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield Event(name, json.loads(line.removeprefix("data: ")))
        else:
            assert line == "", line
            name = ""


def named(lines: Iterable[str]) -> list[Event]:
    return [event for event in read(lines) if event.name]
