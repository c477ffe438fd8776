"""Settings as command-line flags."""

import argparse
import os
import re
from collections.abc import Mapping
from typing import Any, TypeAlias, get_args

import annotated_types
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from server.schemas.validation import message

Fields: TypeAlias = Mapping[str, FieldInfo]
PREFIX = "IDEOSERVE_"
# Kubernetes sets <SERVICE>_PORT in the pods of a Service's namespace.
SERVICE_LINK = re.compile(r"[a-z]+://.+:[0-9]+")


def parser(fields: Fields) -> argparse.ArgumentParser:
    """One flag per field, except secrets, with its bounds and default in --help."""
    made = argparse.ArgumentParser(
        prog="python -m server",
        description="Serve an Ideogram 4 checkpoint over HTTP. Each flag --some-name can also be set by the "
        f"environment variable {PREFIX}SOME_NAME; the flag takes precedence. Other commands, each with its "
        "--help: ideoserve generate, ideoserve request, ideoserve completion.",
        epilog=_secrets_help(fields),
        allow_abbrev=False,
    )
    for name, field in fields.items():
        if _is_secret(field):
            continue
        flag = _flag(name)
        if field.annotation is bool:
            made.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=_help(field))
        else:
            made.add_argument(flag, metavar=_metavar(field), default=None, help=_help(field))
    return made


def explain(error: ErrorDetails, given: Mapping[str, Any]) -> str:
    """One line about an invalid setting, which names the flag or the environment variable that set it."""
    name = str(error["loc"][0])
    variable = PREFIX + name.upper()
    value = None if name in given else os.environ.get(variable)
    if error["type"] == "missing":
        return f"{_flag(name)} or {variable} is required"
    if name == "port" and value and SERVICE_LINK.fullmatch(value):
        return (
            f"{variable}: {value} is no port but the variable that Kubernetes sets for a Service named "
            "ideoserve; set enableServiceLinks: false in the pod's spec, or rename the Service"
        )
    return f"{_flag(name) if value is None else variable}: {message(error)}"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _is_secret(field: FieldInfo) -> bool:
    """Secrets are not flags, which every user of the machine can read."""
    return SecretStr in get_args(field.annotation)


def _secrets_help(fields: Fields) -> str:
    secrets = {name: field for name, field in fields.items() if _is_secret(field)}
    listed = "; ".join(f"{PREFIX}{name.upper()}: {field.description}" for name, field in secrets.items())
    return f"Secrets are read from files or from environment variables, never from flags. {listed}."


def _help(field: FieldInfo) -> str:
    facts = [fact for fact in (_bounds(field), _default(field)) if fact]
    return f"{field.description} ({'; '.join(facts)})".replace("%", "%%")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if isinstance(field.default, bool):
        return f"default {'on' if field.default else 'off'}"
    return "optional" if field.default is None else f"default {field.default}"


def _bounds(field: FieldInfo) -> str:
    """Such as `1 to 64` or `above 0, at most 1`; all bounded fields have an upper bound."""
    low = high = ""
    for rule in field.metadata:
        if isinstance(rule, annotated_types.Ge):
            low = f"{rule.ge} to "
        elif isinstance(rule, annotated_types.Gt):
            low = f"above {rule.gt}, at most "
        elif isinstance(rule, annotated_types.Le):
            high = str(rule.le)
    return low + high


def _metavar(field: FieldInfo) -> str:
    parts = (field.annotation, *get_args(field.annotation))
    choices = ["true", "false"] if bool in parts else []
    choices += [value for part in parts for value in _literals(part)]
    return "{" + ",".join(choices) + "}" if choices else "VALUE"


def _literals(annotation: Any) -> list[str]:
    return [value for value in get_args(annotation) if isinstance(value, str)]
