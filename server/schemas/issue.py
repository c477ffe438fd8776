"""Warnings in a response, and the faults of a refused caption."""

import re

from pydantic import BaseModel

PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]{1,40}")
Path = tuple[str | int, ...]


class Issue(BaseModel):
    """A caption's deviation from the schema, or a warning about how the request was served.

    `path` joins keys and indices of the caption with dots and is empty for the whole caption; null if the
    warning is about the request.
    """

    code: str
    path: str | None
    message: str


class Issues:
    """Collects issues of a caption: the first hundred, and the number of the others."""

    MAX = 100

    def __init__(self) -> None:
        self._first: list[Issue] = []
        self._rest = 0

    def add(self, path: Path, code: str, message: str) -> None:
        if len(self._first) < self.MAX:
            self._first.append(Issue(code=code, path=".".join(map(_part, path)), message=message))
        else:
            self._rest += 1

    def all(self) -> tuple[Issue, ...]:
        more = Issue(code="more", path="", message=f"And {self._rest} more.")
        return (*self._first, more) if self._rest else tuple(self._first)


def _part(part: str | int) -> str:
    """Hides a key that is not a plain word: it may be part of the prompt."""
    text = str(part)
    return text if PLAIN_KEY.fullmatch(text) else "?"
