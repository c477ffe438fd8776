"""uvicorn's HTTP/1.1 connection with further timeouts and limits, and with JSON errors."""

import asyncio
import sys
from typing import Any, cast

import h11
from starlette.requests import HTTPConnection
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.schemas.errors import ApiError

LEAST_BYTES_PER_SECOND = 4096
# Connections above the limit, for probes and metrics.
SPARE_CONNECTIONS = 64
SPARE_HEADER_SECONDS = 1.0
LINGER_SECONDS = 2.0
# Least bytes of a body per piece on average, not counting so many bytes' worth of pieces.
LEAST_PIECE_BYTES = 64
FREE_PIECES_BYTES = 128 << 10


class GuardedConnection(H11Protocol):
    """Closes connections whose client is too slow to send headers, to send the rest of a body that was
    already answered, or to read; connections above `max_connections`; and the slowest readers while unread
    responses exceed `max_unsent_bytes`. Times are in seconds."""

    header_seconds = 20.0
    write_seconds = 30.0
    max_connections = 4096
    max_unsent_bytes = 1 << 30

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assert self.config.h11_max_incomplete_event_size is not None
        self.conn = PieceLimit(h11.SERVER, self.config.h11_max_incomplete_event_size)
        self.app_state = {**self.app_state, "connection": self}
        self.half_closed = asyncio.Event()
        self.is_surplus = False
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._paused_since = 0.0

    @property
    def is_last_request(self) -> bool:
        """The response closes the connection: it is surplus, or the client waits for 100 Continue."""
        return self.is_surplus or self.conn.they_are_waiting_for_100_continue

    @property
    def is_sending(self) -> bool:
        """The client is in the middle of a request, or sends something other than HTTP."""
        return not self.half_closed.is_set() and self.conn.their_state in (h11.SEND_BODY, h11.ERROR)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, LingeringTransport(transport, self)))
        excess = len(self.connections) - self.max_connections
        self.is_surplus = excess > 0
        if excess > SPARE_CONNECTIONS:
            transport.abort()
        self._watch_headers()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._keep_listening()
        self._watch_headers()

    def eof_received(self) -> bool:  # type: ignore[override]
        """True keeps the connection open for pending responses; it closes after the last."""
        self.half_closed.set()
        if self._is_answering() and self.conn.their_state is h11.SEND_BODY:
            self.send_400_response("The connection was closed before the end of the body.")
        return self._is_answering()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.half_closed.is_set() and not self._is_answering():
            self.transport.close()
        self._watch_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._header_timer, self._write_timer):
            if timer:
                timer.cancel()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._paused_since = self.loop.time()
        self._watch_reader()
        self._shed_slow_readers()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer:
            self._write_timer.cancel()

    def send_400_response(self, msg: str) -> None:
        """Answer a request that h11 cannot parse, with the reason if it is known."""
        hint = getattr(sys.exc_info()[1], "error_status_hint", 400)
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(self._bad_request(self._reason(hint) or msg))
        self.transport.close()
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _reason(self, hint: int) -> str | None:
        limit = self.config.h11_max_incomplete_event_size
        reasons = {
            413: "The body was sent in too many small chunks.",
            431: f"The request line and headers exceed {limit} bytes.",
            501: "The only supported Transfer-Encoding is chunked.",
        }
        return reasons.get(hint)

    def _bad_request(self, message: str) -> bytes:
        body = ApiError(400, "invalid_request", message).body().model_dump_json().encode()
        length = str(len(body)).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", length),
            (b"connection", b"close"),
        ]
        response = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
        return b"".join(
            self.conn.send(event) for event in (response, h11.Data(data=body), h11.EndOfMessage())
        )

    def _should_upgrade(self) -> bool:
        """Ignore every `Upgrade`, such as the h2c of Java clients, as RFC 9110 allows."""
        return False

    def _is_answering(self) -> bool:
        return self.cycle is not None and not (self.cycle.response_complete or self.cycle.disconnected)

    def _keep_listening(self) -> None:
        """Resume reading, without which a disconnect goes unnoticed, unless too much input is waiting."""
        waiting = len(self.conn.trailing_data[0]) + len(self.cycle.body) if self.flow.read_paused else 0
        if waiting <= HIGH_WATER_LIMIT:
            self.flow.resume_reading()

    def _watch_headers(self) -> None:
        if self._owes_data():
            seconds = (
                min(self.header_seconds, SPARE_HEADER_SECONDS) if self.is_surplus else self.header_seconds
            )
            self._header_timer = self._header_timer or self.loop.call_later(seconds, self.transport.close)
        elif self._header_timer:
            self._header_timer.cancel()
            self._header_timer = None

    def _owes_data(self) -> bool:
        """No request is running, and this is not the idle time between two requests, which uvicorn limits."""
        if self.cycle is not None and not self.cycle.response_complete:
            return False
        is_pause = self.timeout_keep_alive_task is not None and self.conn.their_state is h11.IDLE
        return not is_pause or bool(self.conn.trailing_data[0])

    def _watch_reader(self, before: int | None = None) -> None:
        """Close the connection if the client read less than LEAST_BYTES_PER_SECOND since the last check."""
        unread = self.transport.get_write_buffer_size()
        if before is not None and before - unread < LEAST_BYTES_PER_SECOND * self.write_seconds:
            self.transport.abort()
        else:
            self._write_timer = self.loop.call_later(self.write_seconds, self._watch_reader, unread)

    def _shed_slow_readers(self) -> None:
        """Close the connections that have been reading longest, down to `max_unsent_bytes` or the last."""
        connections = [each for each in self.connections if isinstance(each, GuardedConnection)]
        slow = sorted(
            (each for each in connections if each.flow.write_paused), key=lambda each: each._paused_since
        )
        unsent = sum(each.transport.get_write_buffer_size() for each in slow)
        for oldest in slow[:-1]:
            if unsent <= self.max_unsent_bytes:
                break
            unsent -= oldest.transport.get_write_buffer_size()
            oldest.transport.abort()


class PieceLimit(h11.Connection):
    """Refuses bodies in many tiny chunks: parsing them would stop the event loop for seconds."""

    _missing = 0

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._missing = 0
        elif isinstance(event, h11.Data):
            self._missing += LEAST_PIECE_BYTES - len(event.data)
            if self._missing > FREE_PIECES_BYTES:
                raise h11.RemoteProtocolError("small chunks", error_status_hint=413)
        return event


class LingeringTransport:
    """Closes only the sending side while the client is still sending its request, for up to LINGER_SECONDS.

    TCP answers data on a closed connection with a reset, which can discard the response before the client
    has read it. The protocol drops received data while `is_closing`.
    """

    def __init__(self, transport: asyncio.Transport, sender: GuardedConnection) -> None:
        self._transport = transport
        self._sender = sender
        self._timer: asyncio.TimerHandle | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._timer is not None or self._transport.is_closing()

    def close(self) -> None:
        if self._timer is None and self._sender.is_sending and not self._transport.is_closing():
            self._transport.write_eof()
            self._transport.resume_reading()
            seconds = min(LINGER_SECONDS, self._sender.header_seconds)
            self._timer = self._sender.loop.call_later(seconds, self._transport.abort)
        elif self._timer is None:
            self._transport.close()


def connection_of(request: HTTPConnection) -> GuardedConnection:
    """The connection of a request."""
    connection: GuardedConnection = request.state.connection
    return connection
