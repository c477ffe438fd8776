"""Around every request: its id and record, the headers all responses share, its log line and metrics."""

import logging

from fastapi.responses import JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import ApiError, ClientDisconnectedError, internal_error
from server.gate import Gate
from server.record import Record
from server.service import Service

logger = logging.getLogger(__name__)


class Envelope:
    """ASGI middleware; no exception passes it."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        record = Record.of(scope)
        scope.setdefault("state", {})["record"] = record
        try:
            await self._answer(record, scope, receive, _with_headers(record, self._service.gate, send))
        finally:
            self._service.finish(record)

    async def _answer(self, record: Record, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._check_headers(scope)
            await self._app(scope, receive, send)
        except ClientDisconnectedError:
            record.outcome = "client_disconnected"
        except ApiError as error:
            record.fail(error)
            await respond(error)(scope, receive, send)
        except Exception:
            logger.exception("a request failed", extra={"fields": {"request_id": record.request_id}})
            record.fail(internal_error())
            if record.status == 0:
                await respond(internal_error())(scope, receive, send)

    def _check_headers(self, scope: Scope) -> None:
        limit = self._service.settings.max_header_count
        if len(scope["headers"]) > limit:
            raise ApiError(431, "too_many_headers", f"A request has at most {limit} headers.")


def respond(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body().model_dump(), error.status, error.headers)


def _with_headers(record: Record, gate: Gate, send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            record.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = record.request_id
            headers["Cache-Control"] = "no-store"
            if gate.is_announced:  # the client's next request belongs to another server
                headers["Connection"] = "close"
            total = f"total;dur={record.seconds * 1000:.1f}"
            stages = headers.get("Server-Timing")
            headers["Server-Timing"] = f"{stages}, {total}" if stages else total
        await send(message)

    return send_with_headers
