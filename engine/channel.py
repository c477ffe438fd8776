"""One end of the pipe between the two processes."""

import contextlib
import threading
from collections import deque
from multiprocessing.connection import Connection
from typing import Any


class Channel:
    """Messages in order, several at a time. Sending does not block: a thread waits for the other side."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._outbox: deque[Any] = deque()
        self._news = threading.Event()
        self._lock = threading.Lock()
        self._is_ending = False
        self._sender = threading.Thread(target=self._send_all, name="channel-sender", daemon=True)
        self._sender.start()

    def send(self, message: Any) -> None:
        """Queue `message`; if the other side is gone it is dropped."""
        self._outbox.append(message)
        self._news.set()

    def send_now(self, message: Any) -> None:
        """Returns once `message`, and all before it, would arrive even if this process died."""
        self._outbox.append(message)
        self._send_queued()

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
        self._is_ending = True
        self._news.set()
        self._sender.join(seconds)

    def close(self) -> None:
        """Once the other side is gone, and nobody receives: a closed descriptor may soon be another's."""
        self.flush(seconds=1.0)
        self._connection.close()

    def _send_all(self) -> None:
        while not self._is_ending:
            self._news.wait()
            self._news.clear()
            self._send_queued()

    def _send_queued(self) -> None:
        with self._lock:
            messages = [self._outbox.popleft() for _ in range(len(self._outbox))]
            if messages:
                with contextlib.suppress(OSError):
                    self._connection.send(messages)
