"""Both ends of the pipe: the client's end never blocks, the worker's end needs no thread.

The pixels of a request's source pass in shared memory. The pipe holds about 200 KB: through it, a worker
would wait for the client's thread many times.
"""

import contextlib
import mmap
import os
import queue
import socket
import threading
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any, BinaryIO

from engine.messages import UnitStarted
from engine.request import EngineRequest, SourceImage


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
        with contextlib.suppress(OSError), _socket(self._connection) as pipe:
            pipe.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the pipe after `shut_down`, once no thread is in `receive`: the descriptor may be reused."""
        self._outbox.put(None)
        self._sender.join()
        self._connection.close()

    def _send_all(self) -> None:
        with contextlib.suppress(OSError):
            while (message := self._outbox.get()) is not None:
                _send(self._connection, message)


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
        return [_with_pixels(connection, message) for message in messages]
    except OSError as error:  # a process that is killed resets the pipe
        raise EOFError from error


def _send(connection: Connection, message: Any) -> None:
    """Send one message. The pixels of a source follow as a descriptor of shared memory."""
    source = message.source if isinstance(message, EngineRequest) else None
    memory = _share(source) if source else None
    if source is None or memory is None:
        connection.send([message])
        return
    bare = replace(source, rgb=b"", mask=None if source.mask is None else b"")
    with memory, _socket(connection) as pipe:
        connection.send([replace(message, source=bare)])
        socket.send_fds(pipe, [b"\0"], [memory.fileno()])


def _with_pixels(connection: Connection, message: Any) -> Any:
    """The message with the pixels that follow it."""
    if not isinstance(message, EngineRequest) or message.source is None or message.source.rgb:
        return message
    with _socket(connection) as pipe:
        data, descriptors, _, _ = socket.recv_fds(pipe, 1, 1)
    if not data:
        raise EOFError
    with open(descriptors[0], "rb") as memory, mmap.mmap(memory.fileno(), 0, prot=mmap.PROT_READ) as pixels:
        end = 3 * message.width * message.height
        mask = None if message.source.mask is None else pixels[end:]
        return replace(message, source=replace(message.source, rgb=pixels[:end], mask=mask))


def _share(source: SourceImage) -> BinaryIO | None:
    """Anonymous memory with the pixels; None without, as outside Linux: they then pass in the pipe."""
    with contextlib.suppress(OSError, AttributeError), contextlib.ExitStack() as stack:
        memory = stack.enter_context(open(os.memfd_create("source"), "wb"))
        memory.writelines([source.rgb, source.mask or b""])
        memory.flush()
        stack.pop_all()
        return memory
    return None


def _socket(connection: Connection) -> socket.socket:
    """The socket of a pipe, to use beside the connection."""
    return socket.socket(fileno=os.dup(connection.fileno()))
