"""Settings as command-line flags."""

import argparse
from collections.abc import Mapping
from typing import Any, TypeAlias, get_args

import annotated_types
from pydantic import SecretStr
from pydantic.fields import FieldInfo

Fields: TypeAlias = Mapping[str, FieldInfo]


def parser(fields: Fields) -> argparse.ArgumentParser:
    """One flag for each field, with its bounds and default in --help."""
    made = argparse.ArgumentParser(
        prog="python -m server",
        description="Serve an Ideogram 4 checkpoint over HTTP. Each flag is also IDEOSERVE_<NAME>.",
        epilog=_secrets_help(fields),
        allow_abbrev=False,
    )
    for name, field in fields.items():
        if _is_secret(field):
            continue
        flag = "--" + name.replace("_", "-")
        if field.annotation is bool:
            made.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=_help(field))
        else:
            made.add_argument(flag, metavar=_metavar(field), default=None, help=_help(field))
    return made


def _is_secret(field: FieldInfo) -> bool:
    """No flag: any user of the machine can see those."""
    return SecretStr in get_args(field.annotation)


def _secrets_help(fields: Fields) -> str:
    secrets = {name: field for name, field in fields.items() if _is_secret(field)}
    listed = "; ".join(f"IDEOSERVE_{name.upper()}: {field.description}" for name, field in secrets.items())
    return f"Secrets come from files, or from the environment alone: {listed}."


def _help(field: FieldInfo) -> str:
    value = "unset" if field.default is None else field.default
    default = "required" if field.is_required() else f"default {value}"
    facts = [fact for fact in (_bounds(field), default) if fact]
    return f"{field.description} ({'; '.join(facts)})".replace("%", "%%")


def _bounds(field: FieldInfo) -> str:
    low = high = ""
    for rule in field.metadata:
        if isinstance(rule, annotated_types.Ge):
            low = f"from {rule.ge}"
        elif isinstance(rule, annotated_types.Gt):
            low = f"above {rule.gt}"
        elif isinstance(rule, annotated_types.Le):
            high = f"to {rule.le}"
    return f"{low} {high}".strip()


def _metavar(field: FieldInfo) -> str:
    choices = [value for part in (field.annotation, *get_args(field.annotation)) for value in _literals(part)]
    return "{" + ",".join(choices) + "}" if choices else "VALUE"


def _literals(annotation: Any) -> list[str]:
    return [value for value in get_args(annotation) if isinstance(value, str)]
