"""uvicorn's HTTP/1.1 connection with the timeouts it lacks, and its own error in the wire's words."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.errors import ApiError

LEAST_BYTES_PER_SECOND = 4096


class GuardedConnection(H11Protocol):
    """Closes a connection whose client is late: with its first or next headers, with the rest of a body
    that was answered already, or with reading what was sent."""

    header_seconds = 20.0
    write_seconds = 30.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_headers()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._header_timer, self._write_timer):
            if timer:
                timer.cancel()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer:
            self._write_timer.cancel()

    def send_400_response(self, msg: str) -> None:
        """What h11 could not read, a head beyond `max_header_bytes` included."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(self._bad_request(msg))
        self.transport.close()

    def _bad_request(self, message: str) -> bytes:
        body = ApiError(400, "invalid_request", message).body().model_dump_json().encode()
        length = str(len(body)).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", length),
            (b"connection", b"close"),
        ]
        response = self.conn.send(h11.Response(status_code=400, headers=headers, reason=b"Bad Request"))
        return (response or b"") + body

    def _watch_headers(self) -> None:
        if self._owes_data():
            later = self.loop.call_later
            self._header_timer = self._header_timer or later(self.header_seconds, self.transport.close)
        elif self._header_timer:
            self._header_timer.cancel()
            self._header_timer = None

    def _owes_data(self) -> bool:
        """No request runs, and the silence is not the keep-alive pause between two, which uvicorn bounds."""
        if self.cycle is not None and not self.cycle.response_complete:
            return False
        is_pause = self.timeout_keep_alive_task is not None and self.conn.their_state is h11.IDLE
        return not is_pause or bool(self.conn.trailing_data[0])

    def _watch_reader(self, before: int | None = None) -> None:
        """Give up on a reader that took next to nothing since the last look; a slow one may take its time."""
        unread = self.transport.get_write_buffer_size()
        if before is not None and before - unread < LEAST_BYTES_PER_SECOND * self.write_seconds:
            self.transport.abort()
        else:
            self._write_timer = self.loop.call_later(self.write_seconds, self._watch_reader, unread)
