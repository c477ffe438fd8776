"""Empty values of a caption: valid, but the published model may draw a grey placeholder for them."""

from collections.abc import Iterable
from typing import Any

from server.schemas.issue import Issue, Issues, Path

MESSAGE = "Empty; the model may draw a grey placeholder. Describe it, or leave an optional key out."


def remarks(caption: dict[str, Any]) -> tuple[Issue, ...]:
    """One for each empty string, list or object, at any depth."""
    found = Issues()
    for path in _empty(caption, ()):
        found.add(path, "empty", MESSAGE)
    return found.all()


def _empty(value: Any, path: Path) -> Iterable[Path]:
    if value in ([], {}) or (isinstance(value, str) and not value.strip()):
        yield path
    elif isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _empty(item, (*path, key))
