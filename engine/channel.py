"""Both ends of the pipe: the client's end never blocks, the worker's end needs no thread."""

import contextlib
import os
import queue
import socket
import threading
from multiprocessing.connection import Connection
from typing import Any

from engine.messages import UnitStarted


class Channel:
    """The client's end. A thread sends the messages in order: a stopped worker does not block the client."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._sender = threading.Thread(target=self._send_all, name="channel-sender", daemon=True)
        self._sender.start()

    def send(self, message: Any) -> None:
        """Queue `message`, which is not None. It is dropped if the worker is gone."""
        self._outbox.put(message)

    def receive(self) -> list[Any]:
        """Wait for the next messages, at least one. Raises EOFError once the worker is gone."""
        return receive(self._connection)

    def shut_down(self) -> None:
        """End `receive` in both processes, even if a child of the worker holds the pipe open."""
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._connection.fileno())) as pipe:
            pipe.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the pipe after `shut_down`, once no thread is in `receive`: the descriptor may be reused."""
        self._outbox.put(None)
        self._sender.join()
        self._connection.close()

    def _send_all(self) -> None:
        with contextlib.suppress(OSError):
            while (message := self._outbox.get()) is not None:
                self._connection.send([message])


class Outbox:
    """The worker's end: buffers messages until a unit of work starts, or the worker is idle."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._messages: list[Any] = []

    def emit(self, message: Any) -> None:
        self._messages.append(message)
        if isinstance(message, UnitStarted):  # the unit may crash the process
            self.flush()

    def flush(self) -> None:
        """Send the buffered messages. They are dropped if the client is gone."""
        messages, self._messages = self._messages, []
        if messages:
            with contextlib.suppress(OSError):
                self._connection.send(messages)


def receive(connection: Connection) -> list[Any]:
    """Wait for the next messages, at least one. Raises EOFError once the other end is gone."""
    try:
        messages: list[Any] = connection.recv()
    except OSError as error:  # a process that is killed resets the pipe
        raise EOFError from error
    return messages
