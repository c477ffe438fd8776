"""Pydantic's validation errors, formatted once for requests, key files and settings."""

from typing import NamedTuple

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from server.schemas.errors import ApiError, invalid

MAX_PARAM_CHARACTERS = 64


class Problem(NamedTuple):
    """The first error: the path of the value with dots between its parts, and pydantic's message."""

    path: str
    message: str


def first_problem(error: ValidationError) -> Problem:
    """The message never contains the value."""
    first = error.errors(include_url=False, include_input=False)[0]
    return Problem(".".join(map(str, first["loc"])), message(first))


def message(error: ErrorDetails) -> str:
    """Pydantic's message without its prefix for errors that a validator raised, or a name of a class."""
    if error["type"] == "model_type":
        return "Input should be a valid dictionary"
    return error["msg"].removeprefix("Value error, ")


def invalid_request(error: ValidationError) -> ApiError:
    """The first error as a 400 that names the field."""
    path, text = first_problem(error)
    return invalid(f"{text}.", path[:MAX_PARAM_CHARACTERS] or None, _code(error))


def _code(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    kind = first["type"]
    if kind == "string_too_long":
        return "string_above_max_length"
    is_wrong_literal = kind == "literal_error" and not isinstance(first["input"], str)
    return (
        "invalid_type" if is_wrong_literal or kind.endswith(("_type", "int_from_float")) else "invalid_value"
    )
