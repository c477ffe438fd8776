"""JSON objects out of the wrappings in which language models put them."""

import re
from typing import Any

from pydantic_core import from_json

MAX_WRAPPINGS = 4
FENCE = "```"
END_OF_THOUGHTS = ("</think>", "</thinking>", "</reasoning>")
WHITESPACE = " \t\r\n\ufeff"
_LANGUAGE = re.compile(r"[\w+-]*")
_LOOKS_LIKE_JSON = re.compile(r"[\s\[\"']*\{")


def unwrap(value: object) -> dict[str, Any] | None:
    """The one object inside byte order marks, a code fence, JSON strings and lists of one, or None."""
    for _ in range(MAX_WRAPPINGS):
        match value:
            case dict():
                return value
            case str():
                value = _parse(_without_fence(value))
            case [item]:
                value = item
            case _:
                return None
    return value if isinstance(value, dict) else None


def extract(answer: str) -> dict[str, Any] | None:
    """The object in a language model's answer: also after its thoughts, and amid other text."""
    for tag in END_OF_THOUGHTS:
        answer = answer.rpartition(tag)[2]
    fenced = answer.partition(FENCE)[2].partition(FENCE)[0]
    start, end = answer.find("{"), answer.rfind("}")
    candidates = (answer, FENCE + fenced, answer[start : end + 1] if start >= 0 else "")
    return next((found for found in map(unwrap, candidates) if found is not None), None)


def looks_like_json(text: str) -> bool:
    """Whether the text begins as an object does, wrapped or not."""
    return _LOOKS_LIKE_JSON.match(_without_fence(text)) is not None


def _without_fence(text: str) -> str:
    """Also where the end is cut off: what is inside is parsed anyway."""
    stripped = text.strip(WHITESPACE)
    if not stripped.startswith(FENCE):
        return stripped
    inside = stripped.removeprefix(FENCE).removesuffix(FENCE)
    return _LANGUAGE.sub("", inside, count=1).strip(WHITESPACE)


def _parse(text: str) -> object:
    try:
        return from_json(text, allow_inf_nan=False) if text[:1] in ("{", "[", '"') else None
    except ValueError:
        return None
