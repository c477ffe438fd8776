"""Reading a request's body: bounded in size and time, JSON or an ApiError."""

import asyncio
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json
from starlette.requests import ClientDisconnect, Request

from server.errors import ApiError, ClientDisconnectedError, invalid

T = TypeVar("T", bound=BaseModel)


async def read_body(request: Request, max_bytes: int, max_seconds: float) -> bytes:
    """Raises ApiError 415, 413 or 408; the last two close the connection, since its body was not read."""
    _require_json(request)
    if int(request.headers.get("content-length", "0")) > max_bytes:
        raise _too_large(max_bytes)
    try:
        async with asyncio.timeout(max_seconds):
            return await _receive(request, max_bytes)
    except TimeoutError:
        message = f"The body did not arrive within {max_seconds:g} seconds."
        raise ApiError(
            408, "request_timeout", message, retry=False, headers={"Connection": "close"}
        ) from None
    except ClientDisconnect:
        raise ClientDisconnectedError from None


async def _receive(request: Request, max_bytes: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
    return bytes(body)


def parse(body: bytes, model: type[T]) -> T:
    """The body as a request. No message repeats what was sent."""
    try:
        value = from_json(body, allow_inf_nan=False)
        _check_names(value, model)
        return model.model_validate(value)
    except ValidationError as error:
        raise _from_pydantic(error.errors(include_url=False)[0]) from None
    except ValueError:
        raise ApiError(400, "invalid_json", "The body is not valid JSON.") from None


def _check_names(value: object, model: type[BaseModel]) -> None:
    """At the first unknown one: the model would make an error of each of a hundred thousand."""
    for name in value if isinstance(value, dict) else ():
        if name not in model.model_fields:
            raise invalid("Unknown parameter.", name[:64] or None, "unknown_parameter")


def _from_pydantic(error: ErrorDetails) -> ApiError:
    kind = error["type"]
    param = ".".join(str(part) for part in error["loc"])[:64] or None
    if kind == "string_too_long":
        return invalid(error["msg"] + ".", param, "string_above_max_length")
    return invalid(error["msg"] + ".", param, "invalid_type" if _is_type_error(error) else "invalid_value")


def _is_type_error(error: ErrorDetails) -> bool:
    kind = error["type"]
    is_wrong_literal = kind == "literal_error" and not isinstance(error["input"], str)
    return is_wrong_literal or kind.endswith("_type") or kind == "int_from_float"


def _require_json(request: Request) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise ApiError(415, "unsupported_media_type", "The body must be application/json.")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise ApiError(415, "unsupported_media_type", "The body must not be compressed.")


def _too_large(max_bytes: int) -> ApiError:
    message = f"The body has more than {max_bytes} bytes."
    return ApiError(413, "body_too_large", message, headers={"Connection": "close"})
