"""Reads the bodies of edits within limits of size, time and memory."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request

from server.edits.multipart import FormReader
from server.edits.payload import Payload, of_form, of_json
from server.generation.parameters import Parameters
from server.observability.request_record import RequestRecord
from server.schemas.errors import ApiError, ClientDisconnectedError
from server.settings.settings import Settings
from server.transport.body import CLOSE, media_type, parse_json, require_uncompressed

# What is parsed at once, in a thread.
BATCH_BYTES = 256 << 10


class _Reader(Protocol):
    def write(self, data: bytes) -> None: ...
    def payload(self) -> Payload: ...
    def close(self) -> None: ...


class Uploads:
    """Counts the bytes of bodies that are read, and of decoded images until their request is answered, and
    limits all of them together."""

    def __init__(self, settings: Settings, model: type[BaseModel]) -> None:
        """`model` is that of the fields."""
        self._max_bytes = settings.max_upload_bytes
        self._max_text_bytes = settings.max_body_bytes
        self._max_seconds = settings.upload_timeout_seconds
        self._free = settings.max_inflight_upload_bytes
        self._model = model

    @asynccontextmanager
    async def receive(self, request: Request) -> AsyncIterator[Payload]:
        """Read the body; its files are deleted at the end of the block.

        Raises ApiError 400, 408, 413, 415 or 503, which close the connection if the body was not read.
        """
        record: RequestRecord = request.state.record
        reader = self._reader(request)
        try:
            await self._read_in_time(request, record, reader)
            yield await asyncio.to_thread(reader.payload)
        finally:
            self.release(record)
            await asyncio.to_thread(reader.close)

    def hold(self, record: RequestRecord, size: int) -> None:
        """Count bytes until `release`. Raises ApiError 503."""
        if size > self._free:
            message = "The memory for uploaded images is full."
            raise ApiError(503, "upload_memory_full", message, retry_after=1)
        self._free -= size
        record.upload_bytes += size

    def hold_image(self, record: RequestRecord, parameters: Parameters) -> None:
        """Count the decoded image of an edit. Raises ApiError 503."""
        source = parameters.source
        assert source
        self.hold(record, len(source.rgb) + len(source.mask or b""))

    def release(self, record: RequestRecord) -> None:
        """Count nothing more for this request."""
        self._free += record.upload_bytes
        record.upload_bytes = 0

    def _reader(self, request: Request) -> _Reader:
        """Raises ApiError 415, 413 or 400."""
        require_uncompressed(request)
        self._check_size(int(request.headers.get("content-length", "0")))
        match media_type(request):
            case "multipart/form-data":
                return _Form(request.headers["content-type"], self._max_text_bytes, self._model)
            case "application/json":
                return _Json()
        message = "The body must be multipart/form-data or application/json."
        raise ApiError(415, "unsupported_media_type", message)

    async def _read_in_time(self, request: Request, record: RequestRecord, reader: _Reader) -> None:
        try:
            async with asyncio.timeout(self._max_seconds):
                await self._read(request, record, reader)
        except TimeoutError:
            message = f"The body was not received within {self._max_seconds:g} seconds."
            raise ApiError(408, "request_timeout", message, retry=False, headers=CLOSE) from None
        except ClientDisconnect:
            raise ClientDisconnectedError from None
        except ApiError as error:
            error.headers |= CLOSE
            raise

    async def _read(self, request: Request, record: RequestRecord, reader: _Reader) -> None:
        batch, received = bytearray(), 0
        async for chunk in request.stream():
            received += len(chunk)
            self._check_size(received)
            self.hold(record, len(chunk))
            batch += chunk
            if len(batch) >= BATCH_BYTES:
                await asyncio.to_thread(reader.write, bytes(batch))
                batch.clear()
        await asyncio.to_thread(reader.write, bytes(batch))

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            message = f"The body exceeds {self._max_bytes} bytes."
            raise ApiError(413, "body_too_large", message, headers=CLOSE)


class _Form(FormReader):
    def __init__(self, content_type: str, max_text_bytes: int, model: type[BaseModel]) -> None:
        super().__init__(content_type, max_text_bytes)
        self._model = model

    def payload(self) -> Payload:
        return of_form(self.finish(), self._model)


class _Json:
    def __init__(self) -> None:
        self._body = bytearray()

    def write(self, data: bytes) -> None:
        self._body += data

    def payload(self) -> Payload:
        return of_json(parse_json(self._body))

    def close(self) -> None:
        self._body.clear()
