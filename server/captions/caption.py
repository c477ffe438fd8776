"""A caption in its normal form, and what deviates in it."""

import json
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from server.captions import shape
from server.schemas.images import MAX_PROMPT_CHARACTERS
from server.schemas.issue import Issue, Issues

REQUIRED_KEY = "compositional_deconstruction"
SCHEMA_KEYS = {
    *("high_level_description", "style_description", REQUIRED_KEY, "background", "elements"),
    *(key for keys in (*shape.STYLE.values(), *shape.ELEMENT.values()) for key in keys),
}


class CaptionTooLongError(ValueError):
    """More characters than a prompt may have."""

    def __init__(self, count: int) -> None:
        super().__init__(f"the caption has {count} characters")
        self.count = count


@dataclass(frozen=True, slots=True)
class Caption:
    """`text` is what the model reads: compact JSON, keys in the order it was trained on."""

    value: dict[str, Any]
    text: str
    faults: tuple[Issue, ...]

    @classmethod
    def of(cls, value: dict[str, Any]) -> "Caption":
        """Raises CaptionTooLongError, or ValueError for a number that JSON cannot hold."""
        _text(value)  # before the work: a megabyte of brackets is not worth a look
        faults = Issues()
        normal = shape.caption(value, (), faults)
        return cls(normal, _text(normal), faults.all())

    @classmethod
    def parse(cls, text: str) -> "Caption | None":
        """Of a string that is a JSON object with the required key; any other string is plain text.

        Raises as `of` does.
        """
        if not text.lstrip().startswith("{"):
            return None
        try:
            value = from_json(text, allow_inf_nan=False)
        except ValueError:
            return None
        return cls.of(value) if isinstance(value, dict) and REQUIRED_KEY in value else None

    @property
    def has_composition(self) -> bool:
        """A caption without it is not one; what else is missing only deviates."""
        return isinstance(self.value.get(REQUIRED_KEY), dict)

    @property
    def words(self) -> str:
        """All that somebody wrote into it, for those who judge a text: every string, every number but
        coordinates, and the keys that are not the schema's."""
        return "\n".join(_words(self.value))


def _text(value: Any) -> str:
    """As compact JSON. Raises CaptionTooLongError, ValueError."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise CaptionTooLongError(len(text))
    return text


def _words(value: Any) -> list[str]:
    match value:
        case bool() | None:
            return []
        case list():
            return [word for item in value for word in _words(item)]
        case dict():
            return [word for key, item in value.items() for word in (*_key(key), *_item(key, item))]
        case _:
            return [str(value)]


def _key(key: str) -> tuple[str, ...]:
    return () if key in SCHEMA_KEYS else (key,)


def _item(key: str, item: Any) -> list[str]:
    return [] if key == "bbox" and shape.is_box(item) else _words(item)
