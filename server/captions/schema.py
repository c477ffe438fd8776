"""The JSON schema of a caption, for /openapi.json and for structured outputs of chat models."""

from typing import Any

from server.captions import shape

Schema = dict[str, Any]
CONSTRAINTS = ("pattern", "minimum", "maximum", "minItems", "maxItems")
STRING: Schema = {"type": "string"}
COLOUR: Schema = {"type": "string", "pattern": "^#[0-9A-F]{6}$"}
BBOX: Schema = {
    "type": "array",
    "description": "y_min, x_min, y_max, x_max in thousandths of the image's sides; origin top left.",
    "items": {"type": "integer", "minimum": 0, "maximum": shape.MAX_COORDINATE},
    "minItems": 4,
    "maxItems": 4,
}


def caption_schema() -> Schema:
    """The schema of a caption without deviations, keys in the order that the model was trained on."""
    composition = _object(
        {"background": STRING, "elements": {"type": "array", "items": {"anyOf": _elements()}}}
    )
    return _object(
        {
            "high_level_description": STRING,
            "style_description": {"anyOf": _styles()},
            "compositional_deconstruction": composition,
        },
        optional=("high_level_description", "style_description"),
    )


def strict_schema(schema: Schema) -> Schema:
    """The same for structured outputs, which require every key: optional ones may be null."""
    if "anyOf" in schema:
        return schema | {"anyOf": [strict_schema(branch) for branch in schema["anyOf"]]}
    if "items" in schema:
        return schema | {"items": strict_schema(schema["items"])}
    if "properties" not in schema:
        return schema
    strict = {
        key: inner if key in schema["required"] else {"anyOf": [inner, {"type": "null"}]}
        for key, inner in ((key, strict_schema(value)) for key, value in schema["properties"].items())
    }
    return schema | {"properties": strict, "required": list(strict)}


def unconstrained(schema: Any) -> Any:
    """The same without patterns and bounds, which many implementations do not support."""
    if isinstance(schema, list):
        return [unconstrained(item) for item in schema]
    if isinstance(schema, dict):
        return {key: unconstrained(item) for key, item in schema.items() if key not in CONSTRAINTS}
    return schema


def _styles() -> list[Schema]:
    palette = _palette(shape.MAX_STYLE_COLOURS)
    return [_of_keys(keys, {"color_palette": palette}, ("color_palette",)) for keys in shape.STYLE.values()]


def _elements() -> list[Schema]:
    inner = {"bbox": BBOX, "color_palette": _palette(shape.MAX_ELEMENT_COLOURS)}
    return [
        _of_keys(keys, inner | {"type": {"type": "string", "enum": [kind]}}, ("bbox", "color_palette"))
        for kind, keys in shape.ELEMENT.items()
    ]


def _palette(most: int) -> Schema:
    return {"type": "array", "items": COLOUR, "maxItems": most}


def _of_keys(keys: tuple[str, ...], inner: dict[str, Schema], optional: tuple[str, ...]) -> Schema:
    return _object({key: inner.get(key, STRING) for key in keys}, optional)


def _object(properties: dict[str, Schema], optional: tuple[str, ...] = ()) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": [key for key in properties if key not in optional],
        "additionalProperties": False,
    }
