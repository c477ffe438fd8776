"""Request bodies: read within limits of size, time and memory, and validated as JSON."""

import asyncio
import codecs
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request

from server.schemas.errors import ApiError, ClientDisconnectedError
from server.schemas.images import PromptFields
from server.settings.settings import Settings

T = TypeVar("T", bound=PromptFields)


# The first bytes of each body, so that large bodies do not block requests with an ordinary prompt.
UNCOUNTED_BYTES = 16 << 10
CLOSE = {"Connection": "close"}


class Bodies:
    """Reads request bodies, and limits the memory of all bodies together."""

    def __init__(self, settings: Settings) -> None:
        self._max_bytes = settings.max_body_bytes
        self._max_seconds = settings.body_timeout_seconds
        self._free = settings.max_inflight_body_bytes

    @asynccontextmanager
    async def receive(self, request: Request) -> AsyncIterator[bytearray]:
        """Read the body; it is emptied at the end of the block.

        Raises ApiError 415, 413, 408 or 503. The last three close the connection, since the rest of the body
        is not read.
        """
        _require_json(request)
        self._check(0, int(request.headers.get("content-length", "0")))
        body = bytearray()
        try:
            await self._read_in_time(request, body)
            yield body
        finally:
            self._free += _counted(len(body))
            body.clear()

    async def _read_in_time(self, request: Request, body: bytearray) -> None:
        try:
            async with asyncio.timeout(self._max_seconds):
                await self._read(request, body)
        except TimeoutError:
            message = f"The body was not received within {self._max_seconds:g} seconds."
            raise ApiError(408, "request_timeout", message, retry=False, headers=CLOSE) from None
        except ClientDisconnect:
            raise ClientDisconnectedError from None

    async def _read(self, request: Request, body: bytearray) -> None:
        async for chunk in request.stream():
            before, after = len(body), len(body) + len(chunk)
            self._check(before, after)
            self._free -= _counted(after) - _counted(before)
            body += chunk

    def _check(self, before: int, after: int) -> None:
        """Check that a body of `before` bytes may grow to `after` bytes. Raises ApiError 413 or 503."""
        if after > self._max_bytes:
            message = f"The body exceeds {self._max_bytes} bytes."
            raise ApiError(413, "body_too_large", message, headers=CLOSE)
        if _counted(after) - _counted(before) > self._free:
            message = "The memory for request bodies is full."
            raise ApiError(503, "body_memory_full", message, retry_after=1, headers=CLOSE)


def _counted(size: int) -> int:
    return max(0, size - UNCOUNTED_BYTES)


def parse(body: bytes | bytearray, model: type[T]) -> T:
    """Parse the body as a `model`. Raises ApiError 400; no message repeats what was sent."""
    return model.read(parse_json(body))


def parse_json(body: bytes | bytearray) -> Any:
    """Raises ApiError 400."""
    try:
        return from_json(_without_byte_order_mark(body), allow_inf_nan=False)
    except ValueError:
        raise ApiError(400, "invalid_json", "The body is not valid JSON.") from None


def _without_byte_order_mark(body: bytes | bytearray) -> bytes | bytearray:
    """RFC 8259 lets a parser ignore the mark, which some clients send (PowerShell)."""
    return body[len(codecs.BOM_UTF8) :] if body.startswith(codecs.BOM_UTF8) else body


def _require_json(request: Request) -> None:
    if media_type(request) != "application/json":
        raise ApiError(415, "unsupported_media_type", "The body must be application/json.")
    require_uncompressed(request)


def media_type(request: Request) -> str:
    """That of the body, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def require_uncompressed(request: Request) -> None:
    """Raises ApiError 415."""
    codings = ",".join(request.headers.getlist("content-encoding")).lower().split(",")
    if any(coding.strip() not in ("", "identity") for coding in codings):
        raise ApiError(415, "unsupported_media_type", "The body must not be compressed.")
