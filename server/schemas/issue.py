"""One thing that is not as it should be, said to the client."""

import re

from pydantic import BaseModel

PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]{1,40}")
Path = tuple[str | int, ...]


class Issue(BaseModel):
    """A caption's deviation from the schema with its place, or a remark on how the request was served.

    `path` has dots between keys and indices and is empty for the whole caption; null where the remark is
    not about a caption.
    """

    code: str
    path: str | None
    message: str


class Issues:
    """The first hundred, and how many more there are."""

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
    """A key that is no plain word may be somebody's text, and is not repeated."""
    text = str(part)
    return text if PLAIN_KEY.fullmatch(text) else "?"
