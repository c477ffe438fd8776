"""A transport that closes without losing its last answer."""

import asyncio
from typing import Any, Protocol

LINGER_SECONDS = 2.0


class Sender(Protocol):
    """The connection whose client may still be sending."""

    @property
    def is_sending(self) -> bool: ...

    @property
    def header_seconds(self) -> float: ...

    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...


class LingeringTransport:
    """Closes only the sending side while the client still sends its request: TCP answers data on a closed
    connection with a reset, which may destroy the response before the client has read it.

    The protocol drops what it receives while `is_closing`.
    """

    def __init__(self, transport: asyncio.Transport, sender: Sender) -> None:
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
