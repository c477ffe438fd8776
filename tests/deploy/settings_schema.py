"""JSON schema of the chart's `settings`, generated from the server's settings.

`python -m tests.deploy.settings_schema` updates values.schema.json.
"""

import json
from pathlib import Path
from typing import Any

from server.settings.settings import Settings

SCHEMA = Path(__file__).parents[2] / "deploy/helm/values.schema.json"
# Set by other values of the chart.
SET_ELSEWHERE = {
    "model",
    "model_name",
    "adapters",
    "host",
    "port",
    "device",
    "devices",
    "uncond_device",
    "api_keys_file",
    "queue",
    "queue_dir",
    "role",
    "store",
    "url_secret_file",
    "drain_delay_seconds",
}
RULES = ("type", "enum", "const", "minimum", "maximum", "exclusiveMinimum", "description")


def settings_schema() -> dict[str, Any]:
    fields = Settings.model_json_schema()["properties"]
    properties = {
        name: _field(field)
        for name, field in fields.items()
        if name not in SET_ELSEWHERE and not _is_secret(field)
    }
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["max_request_seconds"],
        "properties": properties,
    }


def _is_secret(field: dict[str, Any]) -> bool:
    """Secrets are not values: `env` reads them from a Secret."""
    return any(part.get("writeOnly") for part in [field, *field.get("anyOf", [])])


def _field(field: dict[str, Any]) -> dict[str, Any]:
    """Drop titles and defaults. Of an optional field, keep the parts that are not null."""
    parts = [_rules(part) for part in field.get("anyOf", []) if part["type"] != "null"]
    return _rules(field) | (parts[0] if len(parts) == 1 else {"anyOf": parts} if parts else {})


def _rules(field: dict[str, Any]) -> dict[str, Any]:
    return {rule: value for rule, value in field.items() if rule in RULES}


if __name__ == "__main__":
    schema = json.loads(SCHEMA.read_text())
    schema["properties"]["settings"] = settings_schema()
    SCHEMA.write_text(json.dumps(schema, indent=2) + "\n")
