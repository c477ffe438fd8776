"""The dialects in the JSON schema of a request, so that /openapi.json describes what is accepted."""

from typing import Any

from server.schemas.dialects import (
    INTEGER,
    INTEGERS,
    NUMBER,
    NUMBERS,
    VALUES,
    Ignore,
    Merge,
    Refuse,
    Rule,
    Use,
)

Schema = dict[str, Any]
ABSENT: Schema = {"enum": [None, ""]}
TEXT: Schema = {"type": "string", "minLength": 1}


def describe_prompt(schema: Schema) -> None:
    """Exactly one prompt, and empty strings."""
    schema["oneOf"] = _one_of({"prompt": TEXT, "json_prompt": {"type": "object"}})
    _describe_empty(schema["properties"])


def describe_request(schema: Schema, model: type[Any]) -> None:
    """Add other names and values of fields to the schema of an image request."""
    properties: Schema = schema["properties"]
    for name in VALUES.keys() & properties.keys():
        spellings = [key for key, value in VALUES[name].items() if isinstance(value, str)]
        properties[name]["anyOf"].append({"enum": spellings})
    for names, pattern in ((INTEGERS, INTEGER), (NUMBERS, NUMBER)):
        for name in properties.keys() & set(names):
            properties[name]["anyOf"].append({"type": "string", "pattern": f"^{pattern}$"})
    _describe_empty(properties)
    properties |= {name: _property(rule, properties) for name, rule in model.dialects.items()}
    schema["oneOf"] = _one_of({"prompt": TEXT, "json_prompt": {"type": "object"}, "text_prompt": TEXT})


def _property(rule: Rule, properties: Schema) -> Schema:
    match rule:
        case Use(target):
            return properties[target] | {"description": f"Another name of `{target}`."}
        case Ignore(reason):
            return {"description": f"Ignored, with a warning. {reason}"}
        case Refuse(reason):
            return ABSENT | {"description": reason}
        case Merge(reason):
            return {"anyOf": [{"type": "object"}, ABSENT], "description": reason}


def _describe_empty(properties: Schema) -> None:
    for schema in properties.values():
        schema["anyOf"].append({"const": ""})


def _one_of(prompts: Schema) -> list[Schema]:
    """One branch for each prompt; the others are absent there."""
    return [
        {"required": [name], "properties": dict.fromkeys(prompts, ABSENT) | {name: wanted}}
        for name, wanted in prompts.items()
    ]
