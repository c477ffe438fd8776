"""One worker process: started, watched, restarted. Torch-free."""

import asyncio
import contextlib
import math
import multiprocessing
import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Protocol

from engine.channel import Channel
from engine.config import EngineOptions, ModelConfig
from engine.cost import CostModel
from engine.errors import EngineDeadError
from engine.messages import (
    CostCorrected,
    FromWorker,
    RequestDone,
    Shutdown,
    ToWorker,
    UnitDone,
    UnitStarted,
    WorkerFailed,
    WorkerReady,
)
from engine.worker import main as worker_main

# A unit of work may take this many times what it was expected to before its worker counts as hung.
_HANG_FACTOR = 20.0
_MAX_BACKOFF_SECONDS = 30.0
_CHECKPOINT_EXIT_CODE = 2


class Listener(Protocol):
    """Who owns the worker; called on the event loop."""

    def on_message(self, worker: "Worker", message: FromWorker) -> None: ...
    def on_death(self, worker: "Worker", suspects: tuple[str, ...]) -> None:
        """It died with `suspects` in its unit of work, and will be started again."""

    def on_dead_engine(self, error: EngineDeadError) -> None:
        """It cannot be started."""


class Worker:
    """The process of one device. `cost_model` is None until it was ready once; `worked_at` is the end of its
    last unit of work."""

    def __init__(
        self,
        config: ModelConfig,
        options: EngineOptions,
        device: str | None,
        listener: Listener,
        target: Callable[..., None] = worker_main,
    ) -> None:
        self.device = device
        self.cost_model: CostModel | None = None
        self.is_ready = False
        self.restarts = 0
        self.worked_at = -math.inf
        self._config = config
        self._options = options
        self._listener = listener
        self._target = target
        self._suspects: tuple[str, ...] = ()
        self._start_failures = 0
        self._deaths = 0
        self._reason = ""
        self._task: asyncio.Task[None] | None = None
        self._is_closing = False
        self._is_idle = False

    @property
    def allowed_silence(self) -> float:
        """Seconds without a message before it counts as hung, while it has work or loads."""
        if not self.is_ready:
            return self._options.load_seconds
        return max(self._options.hang_seconds, _HANG_FACTOR * self._expected)

    def start(self) -> None:
        self._task = asyncio.create_task(self._supervise())

    def send(self, message: ToWorker) -> None:
        """Never blocks; what is sent to a dying worker is lost, and its owner is told of the death."""
        if self._is_idle:
            # It owes no sign of life from before it had work.
            self._heard_at = time.monotonic()
        self._is_idle = False
        self._channel.send(message)

    def went_idle(self) -> None:
        """It has no work: silence is what is expected of it."""
        self._is_idle = True

    async def close(self) -> None:
        """End the process: politely first."""
        self._is_closing = True
        if self._task is None:
            return
        if self.is_ready:
            self._channel.send(Shutdown())
        else:
            self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError, TimeoutError):
            await asyncio.wait_for(self._task, timeout=5.0)

    async def _supervise(self) -> None:
        await self._run_once()
        while not self._is_closing:
            if self._start_failures >= self._options.max_start_failures:
                self._listener.on_dead_engine(EngineDeadError(f"the worker cannot start: {self._reason}"))
                return
            # 0, 0.5, 1.5, 3.5 ... seconds, until it has answered a request again.
            await asyncio.sleep(min(_MAX_BACKOFF_SECONDS, 0.5 * (2 ** (self._deaths - 1) - 1)))
            self.restarts += 1
            await self._run_once()

    async def _run_once(self) -> None:
        """From the spawn of one process to its end."""
        process = self._spawn()
        ended = asyncio.Event()
        reader = (self._channel, asyncio.get_running_loop(), ended)
        threading.Thread(target=self._read, args=reader, name="channel-reader", daemon=True).start()
        watchdog = asyncio.create_task(self._watch(process))
        try:
            await ended.wait()
        finally:
            was_ready, self.is_ready = self.is_ready, False
            watchdog.cancel()
            # A process that closed its pipe is on its way out; one that is not wanted any more may not be.
            if ended.is_set():
                await asyncio.to_thread(process.join, 0.5)
            process.kill()
            await ended.wait()
            await asyncio.to_thread(self._clean_up, process)
        self._deaths += 1
        if not was_ready:
            self._start_failures += 1
            self._reason = self._reason or "it ended while loading"
        if not self._is_closing:
            self._listener.on_death(self, self._suspects)

    def _spawn(self) -> BaseProcess:
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=self._target,
            args=(theirs, self._config, self._options, self.device),
            name=f"ideoserve-worker-{self.device or 'auto'}",
            daemon=True,
        )
        process.start()
        theirs.close()
        self._channel = Channel(ours)
        self._heard_at, self._expected, self._is_idle = time.monotonic(), 0.0, False
        self._suspects, self._reason = (), ""
        return process

    def _clean_up(self, process: BaseProcess) -> None:
        """Of a dead process; blocks."""
        process.join()
        if process.exitcode:
            self._reason = self._reason or f"it ended with exit code {process.exitcode}"
        process.close()
        self._channel.close()

    def _read(self, channel: Channel, loop: asyncio.AbstractEventLoop, ended: asyncio.Event) -> None:
        """In a thread: hand all messages to the event loop."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            try:
                while True:
                    loop.call_soon_threadsafe(self._on_messages, channel.receive())
            except EOFError:
                loop.call_soon_threadsafe(ended.set)

    def _on_messages(self, messages: list[FromWorker]) -> None:
        self._heard_at = time.monotonic()
        for message in messages:
            self._on_message(message)

    def _on_message(self, message: FromWorker) -> None:
        match message:
            case WorkerReady():
                self.cost_model, self.worked_at = message.cost_model, -math.inf
                self.is_ready = self._is_idle = True
                self._start_failures = 0
            case CostCorrected():
                self.cost_model = message.cost_model
            case UnitDone():
                self.worked_at = time.monotonic()
            case RequestDone():
                self._deaths = 0
            case WorkerFailed():
                self._reason = message.reason
                if message.is_checkpoint_error:
                    self._is_closing = True
                    self._listener.on_dead_engine(EngineDeadError(message.reason, _CHECKPOINT_EXIT_CODE))
            case UnitStarted():
                self._suspects, self._expected = message.request_ids, message.expected_seconds
        self._listener.on_message(self, message)

    async def _watch(self, process: BaseProcess) -> None:
        """Kill the process if it owes a sign of life for too long."""
        while True:
            await asyncio.sleep(min(1.0, self._options.hang_seconds / 4))
            allowed = self.allowed_silence
            if not self._is_idle and time.monotonic() - self._heard_at > allowed:
                self._reason = f"no sign of life for {allowed:.0f} s"
                process.kill()
                return
