"""A worker's process and pipe, for use on the event loop. Torch-free."""

import asyncio
import contextlib
import logging
import multiprocessing
import threading
from collections.abc import Callable
from typing import Any

from engine.channel import Channel
from engine.messages import FromWorker, ToWorker

# Seconds for a process that closed its pipe to exit before it is killed.
_EXIT_SECONDS = 0.5

logger = logging.getLogger(__name__)


class WorkerProcess:
    """Runs `target(connection, *args)` in a new process. No method blocks.

    `closed` is set after its last message, `ended` once the process has exited and `exit_code` is set.
    """

    def __init__(
        self,
        name: str,
        target: Callable[..., None],
        args: tuple[Any, ...],
        on_messages: Callable[[list[FromWorker]], None],
    ) -> None:
        """Raises OSError or RuntimeError if the process or a thread cannot be started."""
        self.closed, self.ended = asyncio.Event(), asyncio.Event()
        self.exit_code: int | None = None
        self._loop = asyncio.get_running_loop()
        self._on_messages = on_messages
        ours, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=target, args=(theirs, *args), name=name, daemon=True)
        with theirs:
            self._process.start()
        try:
            self._channel = Channel(ours)
            threading.Thread(target=self._run_reader, name="channel-reader", daemon=True).start()
        except RuntimeError:
            self._process.kill()
            raise

    def send(self, message: ToWorker) -> None:
        """Send a message. It is lost if the process is gone."""
        self._channel.send(message)

    def kill(self) -> None:
        """Kill the process at once. `closed` follows even if its child processes hold the pipe open."""
        if not self.ended.is_set():
            self._process.kill()
            self._channel.shut_down()

    def _run_reader(self) -> None:
        """In a thread: pass all messages to the event loop, then wait until the process has exited."""
        with contextlib.suppress(RuntimeError):  # the event loop is closed
            try:
                self._receive_all()
                self._loop.call_soon_threadsafe(self.closed.set)
                self._process.join(_EXIT_SECONDS)
                self._process.kill()
                self._process.join()
            finally:
                self._loop.call_soon_threadsafe(self._release)

    def _receive_all(self) -> None:
        while True:
            try:
                messages = self._channel.receive()
            except EOFError:
                return
            except Exception:
                logger.exception("cannot read a message of the worker")
                return
            self._loop.call_soon_threadsafe(self._on_messages, messages)

    def _release(self) -> None:
        self._channel.shut_down()
        self._channel.close()
        self.exit_code = self._process.exitcode
        self._process.close()
        self.ended.set()
