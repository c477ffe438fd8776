"""The two ends of the pipe: the server's must not block, the worker's needs no thread."""

import contextlib
import os
import queue
import socket
import threading
from multiprocessing.connection import Connection
from typing import Any

from engine.messages import UnitStarted


class Channel:
    """The server's end: messages in order, several at a time; a thread of its own waits for the worker."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._sender = threading.Thread(target=self._send_all, name="channel-sender", daemon=True)
        self._sender.start()

    def send(self, message: Any) -> None:
        """Queue `message` (not None); if the worker is gone it is dropped."""
        self._outbox.put(message)

    def receive(self) -> list[Any]:
        """The next messages, at least one. Raises EOFError once the worker is gone."""
        return receive(self._connection)

    def shut_down(self) -> None:
        """End both directions: `receive` reaches its end even if a child of the worker holds the pipe."""
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._connection.fileno())) as pipe:
            pipe.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Once hung up, and nobody receives: a closed descriptor may soon be another's."""
        self._outbox.put(None)
        self._sender.join()
        self._connection.close()

    def _send_all(self) -> None:
        with contextlib.suppress(OSError):
            while (message := self._outbox.get()) is not None:
                self._connection.send([message])


class Outbox:
    """What the worker sends: gathered until a unit of work is announced, or there is none."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._messages: list[Any] = []

    def emit(self, message: Any) -> None:
        self._messages.append(message)
        if isinstance(message, UnitStarted):  # the unit may kill the process
            self.flush()

    def flush(self) -> None:
        """Send what was gathered; if the server is gone it is dropped."""
        messages, self._messages = self._messages, []
        if messages:
            with contextlib.suppress(OSError):
                self._connection.send(messages)


def receive(connection: Connection) -> list[Any]:
    """Raises EOFError once the other side is gone."""
    try:
        messages: list[Any] = connection.recv()
    except OSError as error:  # a side that was killed resets the pipe
        raise EOFError from error
    return messages
