"""A caption in its normal form, and what deviates in it."""

import json
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from server.captions import shape
from server.captions.fault import Fault, Faults
from server.protocol import MAX_PROMPT_CHARACTERS

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
    faults: tuple[Fault, ...]

    @classmethod
    def of(cls, value: dict[str, Any]) -> "Caption":
        """Raises CaptionTooLongError, or ValueError for a number that JSON cannot hold."""
        # Before the work: a megabyte of brackets is not worth a look.
        count = len(_compact(value))
        if count > MAX_PROMPT_CHARACTERS:
            raise CaptionTooLongError(count)
        faults = Faults()
        normal = shape.caption(value, (), faults)
        return cls(normal, _compact(normal), faults.all())

    @classmethod
    def parse(cls, text: str) -> "Caption | None":
        """A string that is a JSON object with the required key; any other string is plain text."""
        if not text.lstrip().startswith("{"):
            return None
        try:
            value = from_json(text, allow_inf_nan=False)
            return cls.of(value) if isinstance(value, dict) and REQUIRED_KEY in value else None
        except ValueError:
            return None

    @property
    def has_composition(self) -> bool:
        """A caption without it is not one; what else is missing only deviates."""
        return isinstance(self.value.get(REQUIRED_KEY), dict)

    @property
    def words(self) -> str:
        """All that somebody wrote into it, for those who judge a text."""
        return "\n".join(_strings(self.value))


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [text for item in value for text in _strings(item)]
    if isinstance(value, dict):
        return [text for key, item in value.items() for text in (*_key(key), *_strings(item))]
    return []


def _key(key: str) -> tuple[str, ...]:
    return () if key in SCHEMA_KEYS else (key,)
