"""A caption in its normal form, and how it deviates from the schema."""

import json
from dataclasses import dataclass
from typing import Any

from server.captions import shape, sparse
from server.captions.unwrap import unwrap
from server.schemas.images import MAX_PROMPT_CHARACTERS
from server.schemas.issue import Issue, Issues

REQUIRED_KEY = "compositional_deconstruction"
SCHEMA_KEYS = {
    *("high_level_description", "style_description", REQUIRED_KEY, "background", "elements"),
    *(key for keys in (*shape.STYLE.values(), *shape.ELEMENT.values()) for key in keys),
}


class CaptionTooLongError(ValueError):
    """The caption has more characters than a prompt may have."""

    def __init__(self, count: int) -> None:
        super().__init__(f"the caption has {count} characters")
        self.count = count


@dataclass(frozen=True, slots=True)
class Caption:
    """`text` is what the model reads: compact JSON, keys in the order it was trained on.

    `faults` are deviations from the schema; `remarks` are about valid values that the model draws badly.
    """

    value: dict[str, Any]
    text: str
    faults: tuple[Issue, ...]
    remarks: tuple[Issue, ...]

    @classmethod
    def of(cls, value: dict[str, Any]) -> "Caption":
        """Raises CaptionTooLongError, or ValueError for a number that JSON cannot hold."""
        _text(value)  # first, so that a megabyte of brackets costs little
        faults = Issues()
        normal = shape.caption(value, (), faults)
        return cls(normal, _text(normal), faults.all(), sparse.remarks(normal))

    @classmethod
    def parse(cls, text: str) -> "Caption | None":
        """Parse a string that is a JSON object with the required key, also one in a code fence, a list or a
        JSON string. None for any other string: plain text. Raises as `of` does.
        """
        value = unwrap(text)
        return cls.of(value) if value is not None and REQUIRED_KEY in value else None

    @property
    def has_composition(self) -> bool:
        """Without it an object is no caption; other missing keys are deviations."""
        return isinstance(self.value.get(REQUIRED_KEY), dict)

    @property
    def words(self) -> str:
        """The text to moderate: every string, every number but coordinates, and the keys that are not the
        schema's, one a line."""
        return "\n".join(_words(self.value))


def _text(value: Any) -> str:
    """`value` as compact JSON. Raises CaptionTooLongError, ValueError."""
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
