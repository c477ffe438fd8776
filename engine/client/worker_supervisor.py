"""Supervision of a worker: starts, monitors and restarts the process of one device. Torch-free."""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable
from typing import Literal, Protocol

from engine.client.heartbeat_monitor import HeartbeatMonitor
from engine.client.restart_backoff import RestartBackoff
from engine.client.worker_process import WorkerProcess
from engine.config.model_config import ModelConfig
from engine.config.options import EngineOptions
from engine.cost import CostModel
from engine.errors import EngineDeadError
from engine.messages import (
    CostCorrected,
    FromWorker,
    Ping,
    Pong,
    RequestDone,
    Shutdown,
    ToWorker,
    UnitDone,
    UnitStarted,
    WorkerFailed,
    WorkerReady,
)
from engine.worker.main import main as worker_main

PERMANENT_EXIT_CODE = 2
_CLOSE_SECONDS = 5.0

DeviceState = Literal["ready", "silent", "starting", "failed"]
logger = logging.getLogger(__name__)


class Listener(Protocol):
    """Receives the events of a worker, on the event loop."""

    def on_message(self, worker: "WorkerSupervisor", message: FromWorker) -> None: ...
    def on_availability(self, worker: "WorkerSupervisor") -> None:
        """`is_ready` or `is_silent` of the worker changed."""

    def on_death(self, worker: "WorkerSupervisor", suspects: tuple[str, ...]) -> None:
        """The process died with the requests `suspects` in its unit of work. It will be restarted."""

    def on_start_failures(self, worker: "WorkerSupervisor", error: EngineDeadError) -> None:
        """The worker `is_failed`. It will be restarted all the same, until `stop_restarting`."""


class WorkerSupervisor:
    """Supervises the worker process of one device. `cost_model` is None until it was ready once, in
    `start_seconds`; `current_request_ids` are those in its latest unit, ended at `last_unit_ended`."""

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
        self.restarts, self.start_seconds = 0, 0.0
        self.last_unit_ended = -math.inf
        self.backoff = RestartBackoff(options.max_start_failures)
        self._name = f"ideoserve-worker-{device or 'auto'}"
        self._config = config
        self._options = options
        self._listener = listener
        self._target = target
        self._process: WorkerProcess | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._reset()

    def _reset(self) -> None:
        self._was_ready = False
        self._is_permanent = False
        self._is_pinged = False
        self._reason = ""
        self._started = time.monotonic()
        self.current_request_ids: tuple[str, ...] = ()
        self._availability = (False, False)
        options = self._options
        self._heartbeat = HeartbeatMonitor(options.hang_seconds, options.load_seconds, time.monotonic())

    @property
    def _is_loaded(self) -> bool:
        return self._was_ready and self._process is not None

    @property
    def is_ready(self) -> bool:
        """Whether it has loaded the model and responds."""
        return self._is_loaded and not self._heartbeat.is_unready

    @property
    def is_silent(self) -> bool:
        """Whether its heartbeat is late, so that other workers are preferred."""
        return self._is_loaded and self._heartbeat.is_silent

    @property
    def is_failed(self) -> bool:
        """Whether it failed to start too many times in a row."""
        return self.backoff.has_failed

    @property
    def state(self) -> DeviceState:
        if self.is_failed:
            return "failed"
        if not self._is_loaded:
            return "starting"
        return "ready" if self.is_ready else "silent"

    def start(self) -> None:
        self._task = asyncio.create_task(self._supervise())

    def send(self, message: ToWorker) -> None:
        """Send without blocking. A message to a dying worker is lost, and `on_death` follows."""
        if self._process is not None:
            self._process.send(message)

    def stop_restarting(self) -> None:
        """Let the current process run, and do not start another."""
        self._closing.set()

    async def close(self) -> None:
        """Shut the process down if it responds, or else kill it. Takes at most 10 seconds."""
        self.stop_restarting()
        if self.is_ready and not self.is_silent:
            self.send(Shutdown())
            await self._ends()
        if self._process is not None:
            self._process.kill()
        await self._ends()

    async def _ends(self) -> None:
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=_CLOSE_SECONDS)

    async def _supervise(self) -> None:
        """Run one process after another until closed."""
        await self._run_once()
        while not await _is_set_within(self.backoff.pause_seconds, self._closing):
            self.restarts += 1
            await self._run_once()

    async def _run_once(self) -> None:
        """Run one process from spawn to exit, and record how it ended."""
        self._reset()
        try:
            await self._run_process()
        except Exception as error:
            logger.exception("%s: supervision of the process failed", self._name)
            self._reason = f"{type(error).__name__}: {error}"
        if self._closing.is_set():
            return
        logger.warning("%s: %s", self._name, self._reason)
        self.backoff.died(self._was_ready, self._is_permanent)
        if self.is_failed:
            self._notify(self._listener.on_start_failures, self._start_error())

    async def _run_process(self) -> None:
        args = (self._config, self._options, self.device)
        self._process = process = WorkerProcess(self._name, self._target, args, self._on_messages)
        try:
            await self._watch(process)
        except BaseException:
            process.kill()
            raise
        finally:
            self._process = None
            if not self._closing.is_set():
                self._notify(self._listener.on_death, self.current_request_ids)
            await process.ended.wait()
        self._reason = self._reason or f"the process exited with code {process.exit_code}"

    async def _watch(self, process: WorkerProcess) -> None:
        """Monitor the process until it closes its pipe, or is killed because it hangs."""
        while not await _is_set_within(self._heartbeat.interval, process.closed):
            self._heartbeat.tick(time.monotonic())
            if self._heartbeat.is_hung:
                self._reason = f"no message for {self._heartbeat.allowed:.0f} s"
                process.kill()
                return
            self._ping(process)
            self._check_availability()

    def _ping(self, process: WorkerProcess) -> None:
        """Send a ping unless one is unanswered: a stopped process reads none."""
        if self._is_loaded and not self._is_pinged:
            self._is_pinged = True
            process.send(Ping())

    def _start_error(self) -> EngineDeadError:
        if self._is_permanent:
            return EngineDeadError(self._reason, PERMANENT_EXIT_CODE)
        return EngineDeadError(f"the worker cannot start: {self._reason}")

    def _on_messages(self, messages: list[FromWorker]) -> None:
        if self._process is not None:  # otherwise the process was given up
            self._heartbeat.heard()
            for message in messages:
                self._on_message(message)
            self._check_availability()

    def _on_message(self, message: FromWorker) -> None:
        match message:
            case WorkerReady():
                self.cost_model, self.last_unit_ended = message.cost_model, -math.inf
                self._was_ready, self.start_seconds = True, time.monotonic() - self._started
                self._heartbeat.expect(0.0)
                self.backoff.is_ready()
            case CostCorrected():
                self.cost_model = message.cost_model
            case RequestDone():
                self.backoff.has_answered()
            case WorkerFailed():
                self._reason, self._is_permanent = message.reason, message.is_permanent
            case UnitStarted(_, request_ids, seconds):
                self.current_request_ids = request_ids
                self._heartbeat.expect(seconds)
            case UnitDone():
                self.last_unit_ended = time.monotonic()
                self._heartbeat.expect(0.0)
            case Pong():
                self._is_pinged = False
        self._notify(self._listener.on_message, message)

    def _check_availability(self) -> None:
        before, self._availability = self._availability, (self.is_ready, self.is_silent)
        if self._availability != before:
            self._notify(self._listener.on_availability)

    def _notify(self, callback: Callable[..., None], *details: object) -> None:
        """Call the listener. An exception in it does not end the supervision."""
        try:
            callback(self, *details)
        except Exception:
            logger.exception("%s: an event could not be handled", self._name)


async def _is_set_within(seconds: float, event: asyncio.Event) -> bool:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()
