"""The caption schema as small rules: each normalizes a value and reports deviations.

A rule never drops a value. It orders keys, removes nulls of optional keys, writes colours as #RRGGBB and
whole numbers as integers; what it does not understand stays as it is, behind what it does.
"""

import re
from collections.abc import Callable
from typing import Any

from server.schemas.issue import Issues, Path

Rule = Callable[[Any, Path, Issues], Any]
COLOUR = re.compile(r"#[0-9A-Fa-f]{3}(?:[0-9A-Fa-f]{3})?")
MAX_STYLE_COLOURS = 16
MAX_ELEMENT_COLOURS = 5
MAX_COORDINATE = 1000

STYLE = {
    "photo": ("aesthetics", "lighting", "photo", "medium", "color_palette"),
    "art_style": ("aesthetics", "lighting", "medium", "art_style", "color_palette"),
}
ELEMENT = {
    "obj": ("type", "bbox", "desc", "color_palette"),
    "text": ("type", "bbox", "text", "desc", "color_palette"),
}


def caption(value: Any, path: Path, faults: Issues) -> Any:
    rules: dict[str, Rule] = {
        "high_level_description": string,
        "style_description": style,
        "compositional_deconstruction": composition,
    }
    return _object(value, path, faults, rules, required=("compositional_deconstruction",))


def composition(value: Any, path: Path, faults: Issues) -> Any:
    rules: dict[str, Rule] = {"background": string, "elements": elements}
    return _object(value, path, faults, rules, required=tuple(rules))


def style(value: Any, path: Path, faults: Issues) -> Any:
    if not isinstance(value, dict):
        return _wrong(value, path, faults, "object")
    kinds = [kind for kind in STYLE if value.get(kind) is not None]
    if len(kinds) != 1:
        faults.add(path, "style_kind", "Exactly one of photo and art_style is required.")
    # The other kind comes last, for a style that has both.
    keys = dict.fromkeys(STYLE[kinds[0] if kinds else "photo"] + tuple(STYLE))
    rules = {key: palette(MAX_STYLE_COLOURS) if key == "color_palette" else string for key in keys}
    return _object(value, path, faults, rules, required=("aesthetics", "lighting", "medium"))


def elements(value: Any, path: Path, faults: Issues) -> Any:
    return _list(value, path, faults, element)


def element(value: Any, path: Path, faults: Issues) -> Any:
    if not isinstance(value, dict):
        return _wrong(value, path, faults, "object")
    kind = value.get("type")
    if not (isinstance(kind, str) and kind in ELEMENT):
        if kind is not None:
            faults.add((*path, "type"), "element_type", "The type of an element must be obj or text.")
        kind = "text" if "text" in value else "obj"
    keys = ELEMENT[kind]
    kinds: dict[str, Rule] = {"type": _as_is, "bbox": bbox, "color_palette": palette(MAX_ELEMENT_COLOURS)}
    rules = {key: kinds.get(key, string) for key in keys}
    required = tuple(key for key in keys if key not in ("bbox", "color_palette"))
    return _object(value, path, faults, rules, required)


def bbox(value: Any, path: Path, faults: Issues) -> Any:
    """`[y_min, x_min, y_max, x_max]` in thousandths of the image's sides."""
    if not isinstance(value, list):
        return _wrong(value, path, faults, "list")
    box = [_coordinate(n) for n in value]
    if not is_box(box):
        message = f"A bbox must be four integers from 0 to {MAX_COORDINATE}: y_min, x_min, y_max, x_max."
        faults.add(path, "bbox", message)
    elif box[0] > box[2] or box[1] > box[3]:
        faults.add(path, "bbox_order", "A bbox minimum must not be above its maximum.")
    return box


def is_box(value: Any) -> bool:
    """Four integers in range, in any order."""
    if not isinstance(value, list) or len(value) != 4:
        return False
    return all(type(n) is int and 0 <= n <= MAX_COORDINATE for n in value)


def _coordinate(value: Any) -> Any:
    """5 for 5.0; a number out of range stays unchanged, because 1e308 would become 309 digits."""
    is_whole = isinstance(value, float) and value.is_integer() and 0 <= value <= MAX_COORDINATE
    return int(value) if is_whole else value


def palette(most: int) -> Rule:
    def rule(value: Any, path: Path, faults: Issues) -> Any:
        if isinstance(value, list) and len(value) > most:
            faults.add(path, "too_many_colours", f"A palette has at most {most} colours.")
        return _list(value, path, faults, colour)

    return rule


def colour(value: Any, path: Path, faults: Issues) -> Any:
    if not isinstance(value, str):
        return _wrong(value, path, faults, "string")
    if not COLOUR.fullmatch(value):
        faults.add(path, "colour", "A colour must be #RRGGBB.")
        return value
    digits = value[1:].upper()
    return "#" + (digits if len(digits) == 6 else "".join(digit * 2 for digit in digits))


def string(value: Any, path: Path, faults: Issues) -> Any:
    return value if isinstance(value, str) else _wrong(value, path, faults, "string")


def _as_is(value: Any, path: Path, faults: Issues) -> Any:
    return value


def _list(value: Any, path: Path, faults: Issues, rule: Rule) -> Any:
    if not isinstance(value, list):
        return _wrong(value, path, faults, "list")
    return [rule(item, (*path, index), faults) for index, item in enumerate(value)]


def _object(value: Any, path: Path, faults: Issues, rules: dict[str, Rule], required: tuple[str, ...]) -> Any:
    """Known keys in the order of `rules`, then unknown keys in their given order."""
    if not isinstance(value, dict):
        return _wrong(value, path, faults, "object")
    given = {key: item for key, item in value.items() if item is not None or key not in rules}
    for key in required:
        if key not in given:
            faults.add((*path, key), "missing", "Missing.")
    known = {key: rule(given[key], (*path, key), faults) for key, rule in rules.items() if key in given}
    unknown = {key: item for key, item in given.items() if key not in rules}
    for key in unknown:
        faults.add((*path, key), "unknown_key", "Not a key of the schema.")
    return known | unknown


def _wrong(value: Any, path: Path, faults: Issues, kind: str) -> Any:
    faults.add(path, "type", f"Must be {'an' if kind == 'object' else 'a'} {kind}.")
    return value
