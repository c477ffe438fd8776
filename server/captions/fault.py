"""One thing that is not as it should be, said to the client."""

import re

from pydantic import BaseModel

PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]{1,40}")
Path = tuple[str | int, ...]


class Fault(BaseModel):
    """A caption's deviation from the schema with its place, or a remark on how the request was served.

    `path` has dots between keys and indices and is empty for the whole caption; null where the remark is
    not about a caption.
    """

    code: str
    path: str | None
    message: str

    @classmethod
    def at(cls, path: Path, code: str, message: str) -> "Fault":
        return cls(code=code, path=".".join(map(_part, path)), message=message)


def _part(part: str | int) -> str:
    """A key that is no plain word may be somebody's text, and is not repeated."""
    text = str(part)
    return text if PLAIN_KEY.fullmatch(text) else "?"
