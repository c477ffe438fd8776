"""One end of the pipe between the two processes. Sending never blocks the caller."""

import contextlib
import queue
import threading
from multiprocessing.connection import Connection
from typing import Any


class Channel:
    """Messages in order, several at a time; a thread of its own pickles them and waits for the other side."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._sender = threading.Thread(target=self._send_all, name="channel-sender", daemon=True)
        self._sender.start()

    def send(self, message: Any) -> None:
        """Queue `message` (not None); if the other side is gone it is dropped."""
        self._outbox.put(message)

    def poll(self, seconds: float | None) -> bool:
        """Whether messages (or the end) can be received, waiting at most `seconds`; None waits for ever."""
        return self._connection.poll(seconds)

    def receive(self) -> list[Any]:
        """The next messages, at least one. Raises EOFError once the other side is gone."""
        try:
            messages: list[Any] = self._connection.recv()
        except OSError as error:  # a side that was killed resets the pipe
            raise EOFError from error
        return messages

    def flush(self, seconds: float) -> None:
        """Let what was sent go out; nothing can be sent after it."""
        self._outbox.put(None)
        self._sender.join(seconds)

    def close(self) -> None:
        """Once the other side is gone, and nobody receives: a closed descriptor may soon be another's."""
        self.flush(seconds=1.0)
        self._connection.close()

    def _send_all(self) -> None:
        with contextlib.suppress(OSError):
            messages: list[Any] = []
            while (message := self._outbox.get()) is not None:
                messages.append(message)
                if self._outbox.empty():
                    self._connection.send(messages)
                    messages = []
            if messages:
                self._connection.send(messages)
