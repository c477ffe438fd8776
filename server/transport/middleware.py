"""ASGI middleware around every request: its record, the headers of all responses, and errors as JSON."""

import asyncio
import logging
from collections.abc import Callable

from fastapi.responses import JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.observability.logs import PROBES
from server.observability.request_record import RequestRecord
from server.schemas.errors import ApiError, internal_error, server_stopped
from server.settings.settings import Settings
from server.transport import wire
from server.transport.connection import connection_of

logger = logging.getLogger(__name__)


class RequestMiddleware:
    """Creates the record of each request and calls `finish` with it at the end. Outermost.

    The application sees HEAD as GET: uvicorn drops the body of the response.
    """

    def __init__(
        self, app: ASGIApp, is_closing: Callable[[], bool], finish: Callable[[RequestRecord], None]
    ) -> None:
        """`is_closing` tells whether the connection closes after the response."""
        self._app = app
        self._is_closing = is_closing
        self._finish = finish

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = wire.normalize(scope)
        record = scope["state"]["record"] = RequestRecord.of(scope)
        if scope["method"] == "HEAD":
            scope["method"] = "GET"
        try:
            await self._app(scope, receive, self._with_headers(record, scope, send))
        finally:
            self._finish(record)

    def _with_headers(self, record: RequestRecord, scope: Scope, send: Send) -> Send:
        connection, is_closing = connection_of(Request(scope)), self._is_closing

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                is_last = is_closing() or connection.is_last_request
                _add_headers(MutableHeaders(scope=message), record, is_last)
            await send(message)
            is_body = message["type"] == "http.response.body"
            record.is_answered = is_body and not message.get("more_body", False)

        return send_with_headers


class ErrorMiddleware:
    """Checks each request against HTTP and the connection limit, and answers every exception."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record: RequestRecord = scope["state"]["record"]
        try:
            await self._call(record, scope, receive, send)
        except ApiError as error:
            if not record.is_answered:
                record.fail(error)
            if record.status == 0:
                await _error_response(error)(scope, receive, send)

    async def _call(self, record: RequestRecord, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises ApiError, and no other exception."""
        try:
            self._check(scope)
            await self._app(scope, receive, send)
        except ApiError:
            raise
        except asyncio.CancelledError:
            raise server_stopped() from None
        except Exception:
            logger.exception("a request failed", extra={"fields": {"request_id": record.request_id}})
            raise internal_error() from None

    def _check(self, scope: Scope) -> None:
        """Raises ApiError. The spare connections serve probes and metrics only."""
        wire.check(scope, self._settings)
        connection = connection_of(Request(scope))
        if connection.is_surplus and scope["path"] not in PROBES:
            message = f"More than {connection.max_connections} connections are open."
            raise ApiError(503, "too_many_connections", message, retry_after=1)


def _error_response(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body().model_dump(), error.status, error.headers)


def _add_headers(headers: MutableHeaders, record: RequestRecord, is_last: bool) -> None:
    headers["x-request-id"] = record.request_id
    headers.setdefault("Cache-Control", "no-store")
    if is_last:
        headers["Connection"] = "close"
    total = f"total;dur={record.seconds * 1000:.1f}"
    stages = headers.get("Server-Timing")
    headers["Server-Timing"] = f"{stages}, {total}" if stages else total
