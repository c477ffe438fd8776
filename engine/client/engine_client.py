"""EngineClient: the engine's interface in the server's process. Torch-free.

Every accepted request is answered: it is dispatched to the worker where it should be done first. If that
worker dies, the request runs again from its seeds on another worker, or on the same one once it has
restarted.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import get_args

from engine.client.backlog import Backlog, DeviceLoads, Forecast
from engine.client.in_flight import InFlightRequest, InFlightRequests
from engine.client.preflight import open_tokenizer
from engine.client.worker_supervisor import PERMANENT_EXIT_CODE, DeviceState, WorkerSupervisor
from engine.config.model_config import ModelConfig
from engine.config.options import EngineOptions
from engine.cost import DeviceSpeed
from engine.errors import EngineDeadError
from engine.messages import (
    Abort,
    FromWorker,
    ImageDone,
    Notice,
    PreviewReady,
    Promote,
    RequestDone,
    RequestFailed,
    RequestOutput,
    StepDone,
    UnitDone,
    UnitKind,
    WorkerReady,
)
from engine.precision import Precision
from engine.request import EngineRequest, Priority
from engine.worker.main import main as worker_main

UnitListener = Callable[[UnitKind, int, float], None]
WorkerTarget = Callable[..., None]
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot of the engine. Bytes are over all devices, counters are since the workers' start, and
    `devices` is the number of devices by state. `start_seconds` is the longest last start of a worker until
    it was ready, 0 if none was."""

    running: int
    waiting: int
    restarts: int
    device_memory_bytes: int
    cache_hits: int
    cache_misses: int
    devices: Mapping[str, int]
    start_seconds: float


class EngineClient:
    """Owns the workers and the requests in flight. Call all methods on one event loop."""

    def __init__(
        self, config: ModelConfig, options: EngineOptions, worker_target: WorkerTarget = worker_main
    ) -> None:
        """Raises CheckpointError if limits, configs, tokenizer and chat template do not match."""
        self.config = config
        self._tokenizer = open_tokenizer(config)
        devices = options.devices or (None,)
        self._workers = [WorkerSupervisor(config, options, device, self, worker_target) for device in devices]
        self._in_flight = InFlightRequests()
        self._backlog = Backlog(self._workers, self._in_flight)
        self._units: dict[WorkerSupervisor, UnitDone] = {}
        self._listeners: list[UnitListener] = []
        self.precision: Precision | None = None  # of the latest worker that became ready
        self._death: EngineDeadError | None = None
        self._died = asyncio.Event()

    async def start(self) -> None:
        """Spawn the workers. Returns before they have loaded the model."""
        for worker in self._workers:
            worker.start()

    async def close(self) -> None:
        """Shut the workers down. Requests in flight fail with EngineDeadError."""
        self._fail_all(EngineDeadError("the engine is closed"))
        await asyncio.gather(*(worker.close() for worker in self._workers))

    @property
    def is_ready(self) -> bool:
        """Whether at least one worker has loaded the model and responds."""
        return any(worker.is_ready for worker in self._workers)

    async def wait_dead(self) -> EngineDeadError:
        """Wait until the engine can never be ready again, and return the reason."""
        await self._died.wait()
        assert self._death is not None
        return self._death

    def tokenize(self, prompt: str) -> tuple[int, ...]:
        """Raises PromptTooLongError."""
        return self._tokenizer.encode(prompt)

    def forecast(self, request: EngineRequest) -> list[Forecast]:
        """One forecast for each device that takes new requests."""
        return self._backlog.forecast(request)

    def speeds(self) -> list[DeviceSpeed]:
        """Of the devices that take new requests."""
        return self._backlog.speeds()

    def backlog_seconds(self, priority: Priority) -> float:
        """Predicted seconds of work ahead of a new request of this priority, on the device with the least."""
        return self._backlog.seconds(priority)

    def first_done_seconds(self, request_ids: Iterable[str]) -> float:
        """Upper bound of the seconds until the first of these requests is done; 0 if none is in flight."""
        return self._backlog.first_done_seconds(request_ids)

    def reserve(self, request: EngineRequest, deadline: float | None = None) -> InFlightRequest:
        """Count a request in the backlog before it is generated. Call it again to replace the request."""
        return self._in_flight.reserve(request, deadline)

    def release(self, request_id: str) -> None:
        """Remove a request in flight, and abort it unless it is answered. An unknown id is ignored."""
        request = self._in_flight.pop(request_id, None)
        if request is not None and request.worker is not None and not request.is_answered:
            request.worker.send(Abort(request_id))

    def promote(self, request_id: str, deadline: float | None, priority: Priority) -> None:
        """Extend the deadline or raise the priority of a request in flight. An unknown id is ignored."""
        promoted = self._in_flight.promote(request_id, deadline, priority)
        if promoted and promoted.worker:
            promoted.worker.send(Promote(request_id, promoted.request.priority))

    def stats(self) -> EngineStats:
        units, states = self._units.values(), Counter(worker.state for worker in self._workers)
        running = sum(request.has_begun for request in self._in_flight.values())
        return EngineStats(
            running=running,
            waiting=len(self._in_flight) - running,
            restarts=sum(worker.restarts for worker in self._workers),
            device_memory_bytes=sum(unit.device_memory_bytes for unit in units),
            cache_hits=sum(unit.cache_hits for unit in units),
            cache_misses=sum(unit.cache_misses for unit in units),
            devices={state: states[state] for state in get_args(DeviceState)},
            start_seconds=max(worker.start_seconds for worker in self._workers),
        )

    def subscribe(self, listener: UnitListener) -> None:
        """Call `listener(kind, batch_size, seconds)` after each unit of work."""
        self._listeners.append(listener)

    async def generate(self, request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
        """Yield the request's outputs, RequestDone last. Closing the generator early aborts the request.

        Raises EngineError.
        """
        if self._death:
            raise self._death.copy()
        in_flight = self.reserve(request)
        in_flight.start()
        self._dispatch(in_flight, self._backlog.loads())
        try:
            while True:
                output = await in_flight.next_output()
                yield output
                if isinstance(output, RequestDone):
                    return
        finally:
            self.release(request.request_id)

    def on_message(self, worker: WorkerSupervisor, message: FromWorker) -> None:
        """Pass outputs to their requests, units of work to the listeners, and notices to the log."""
        match message:
            case Notice(level, text, fields):
                logger.log(level, text, extra={"fields": {"device": worker.device, **fields}})
            case WorkerReady():
                self.precision = message.precision
            case UnitDone():
                self._units[worker] = message
                for listener in self._listeners:
                    listener(message.kind, message.batch_size, message.seconds)
            case StepDone() | PreviewReady() | ImageDone() | RequestDone() | RequestFailed():
                request = self._in_flight.get(message.request_id)
                if request is not None and request.worker is worker:
                    request.receive(message)

    def on_availability(self, worker: WorkerSupervisor) -> None:
        """Dispatch requests that have not begun to where they are done first now."""
        self._rebalance()

    def on_death(self, worker: WorkerSupervisor, suspects: tuple[str, ...]) -> None:
        """Restart the worker's requests. The suspects run one at a time, and fail if a second worker dies."""
        self._units.pop(worker, None)
        for request in self._in_flight.values():
            if request.worker is worker and not request.is_answered:
                request.restart(suspects)
        self._rebalance()

    def on_start_failures(self, worker: WorkerSupervisor, error: EngineDeadError) -> None:
        """End the engine if no device is left. After a permanent error, only devices that have been ready
        count: on the others, loading will fail in the same way."""
        is_permanent = error.exit_code == PERMANENT_EXIT_CODE
        others = [other for other in self._workers if not other.is_failed]
        if any(other.cost_model or not is_permanent for other in others):
            return
        for each in self._workers:
            each.stop_restarting()
        self._fail_all(error)
        self._died.set()

    def _fail_all(self, error: EngineDeadError) -> None:
        self._death = self._death or error
        for request in self._in_flight.values():
            request.fail(error.copy())

    def _rebalance(self) -> None:
        """Dispatch each request that no worker has begun to the worker where it is done first."""
        loads = self._backlog.loads()
        for request in self._in_flight.values():
            if request.can_move:
                self._dispatch(request, loads)

    def _dispatch(self, request: InFlightRequest, loads: DeviceLoads) -> None:
        """Send the request to the worker where it is done first, unless no worker is ready."""
        if not self.is_ready:
            return
        before, request.worker = request.worker, loads.place(request)
        if before is request.worker:
            return
        if before is not None:
            before.send(Abort(request.request.request_id))
        request.worker.send(request.request)
