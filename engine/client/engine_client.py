"""EngineClient: the engine as the server's process sees it. Torch-free.

Every accepted request is answered: it is given to the worker with the least predicted backlog, and if
that worker dies, given again, from its seed, to the next one that is ready.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import get_args

from engine.client.backlog import Backlog, DeviceLoads, Forecast
from engine.client.in_flight import InFlightRequest
from engine.client.preflight import open_tokenizer
from engine.client.worker_supervisor import CHECKPOINT_EXIT_CODE, DeviceState, WorkerSupervisor
from engine.config.model_config import ModelConfig
from engine.config.options import EngineOptions
from engine.errors import EngineDeadError
from engine.messages import (
    Abort,
    FromWorker,
    ImageDone,
    PreviewReady,
    Promote,
    RequestDone,
    RequestFailed,
    RequestOutput,
    StepDone,
    UnitDone,
    UnitKind,
)
from engine.request import EngineRequest, Priority
from engine.worker.main import main as worker_main

UnitListener = Callable[[UnitKind, int, float], None]
WorkerTarget = Callable[..., None]


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A moment of the engine. Bytes over all devices; the counters since the workers' start; `devices` by
    state."""

    running: int
    waiting: int
    restarts: int
    device_memory_bytes: int
    cache_hits: int
    cache_misses: int
    devices: Mapping[str, int]


class EngineClient:
    """Owns the workers. All methods belong on one event loop."""

    def __init__(
        self, config: ModelConfig, options: EngineOptions, worker_target: WorkerTarget = worker_main
    ) -> None:
        """Raises CheckpointError if limits, configs, tokenizer and chat template do not fit each other."""
        self.config = config
        self._tokenizer = open_tokenizer(config)
        devices = options.devices or (None,)
        self._workers = [WorkerSupervisor(config, options, device, self, worker_target) for device in devices]
        self._in_flight: dict[str, InFlightRequest] = {}
        self._backlog = Backlog(self._workers, self._in_flight)
        self._units: dict[WorkerSupervisor, UnitDone] = {}
        self._listeners: list[UnitListener] = []
        self._death: EngineDeadError | None = None
        self._died = asyncio.Event()

    async def start(self) -> None:
        """Spawn the workers; loading goes on behind it."""
        for worker in self._workers:
            worker.start()

    async def close(self) -> None:
        """End the workers; what is still asked for fails."""
        self._fail_all(EngineDeadError("the engine is closed"))
        await asyncio.gather(*(worker.close() for worker in self._workers))

    @property
    def is_ready(self) -> bool:
        """Whether a worker is loaded, warmed up and responds."""
        return any(worker.is_ready for worker in self._workers)

    async def wait_dead(self) -> EngineDeadError:
        """Returns once the engine can never be ready again."""
        await self._died.wait()
        assert self._death is not None
        return self._death

    def tokenize(self, prompt: str) -> tuple[int, ...]:
        """Raises PromptTooLongError."""
        return self._tokenizer.encode(prompt)

    def forecast(self, request: EngineRequest) -> list[Forecast]:
        """What the request would meet on each device that takes work."""
        return self._backlog.forecast(request)

    def backlog_seconds(self, priority: Priority) -> float:
        """Predicted work ahead of a new request of this priority, on the device with the least of it."""
        return self._backlog.seconds(priority)

    def first_done_seconds(self, request_ids: Iterable[str]) -> float:
        """Until the first of these requests is done, at the latest; 0 if none is in flight."""
        return self._backlog.first_done_seconds(request_ids)

    def reserve(self, request: EngineRequest, deadline: float | None = None) -> InFlightRequest:
        """Count a request as work before it is generated. Reserve it again to change all but its deadline.

        `deadline` is in seconds of `time.monotonic()`; only `promote` changes it.
        """
        new = InFlightRequest(request, deadline)
        reserved = self._in_flight.setdefault(request.request_id, new)
        reserved.request = request
        return reserved

    def release(self, request_id: str) -> None:
        """End a request in flight; an unknown id is ignored."""
        if request_id in self._in_flight:
            self._forget(self._in_flight[request_id])

    def promote(self, request_id: str, deadline: float | None, priority: Priority) -> None:
        """Give a request in flight more time or a higher priority, never less; an unknown id is ignored."""
        in_flight = self._in_flight.get(request_id)
        if in_flight is None:
            return
        before = in_flight.request.priority
        in_flight.promote(deadline, priority)
        if in_flight.worker and in_flight.request.priority != before:
            in_flight.worker.send(Promote(request_id, in_flight.request.priority))

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
        )

    def subscribe(self, listener: UnitListener) -> None:
        """`listener(kind, batch_size, seconds)` is called after each unit of device work."""
        self._listeners.append(listener)

    async def generate(self, request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
        """The request's outputs, RequestDone last. Leaving early aborts it.

        Raises DeadlineExceededError, GenerationError or EngineDeadError.
        """
        if self._death:
            raise self._death
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
        """Pass outputs on, take note of the rest."""
        match message:
            case UnitDone():
                self._units[worker] = message
                for listener in self._listeners:
                    listener(message.kind, message.batch_size, message.seconds)
            case StepDone() | PreviewReady() | ImageDone() | RequestDone() | RequestFailed():
                request = self._in_flight.get(message.request_id)
                if request is not None and request.worker is worker:
                    request.deliver(message)

    def on_availability(self, worker: WorkerSupervisor) -> None:
        """What is not begun goes where it is done first now."""
        self._rebalance()

    def on_death(self, worker: WorkerSupervisor, suspects: tuple[str, ...]) -> None:
        """Its requests run again; those it died on run alone, and not for ever."""
        self._units.pop(worker, None)
        for request in self._in_flight.values():
            if request.worker is worker and not request.is_answered:
                request.start_again(suspects)
        self._rebalance()

    def on_start_failures(self, worker: WorkerSupervisor, error: EngineDeadError) -> None:
        """The engine is dead once no device is left. If the checkpoint is at fault, only devices
        that have been ready are left."""
        is_checkpoint_error = error.exit_code == CHECKPOINT_EXIT_CODE
        others = [other for other in self._workers if not other.is_failed]
        if any(other.cost_model or not is_checkpoint_error for other in others):
            return
        for each in self._workers:
            each.stop_restarting()
        self._fail_all(error)
        self._died.set()

    def _fail_all(self, error: EngineDeadError) -> None:
        self._death = self._death or error
        for request in self._in_flight.values():
            request.put(error)

    def _forget(self, request: InFlightRequest) -> None:
        """Done, failed or left: make sure that it costs nothing any more."""
        del self._in_flight[request.request.request_id]
        if request.worker is not None and not request.is_answered:
            request.worker.send(Abort(request.request.request_id))

    def _rebalance(self) -> None:
        """Give each request that no worker is at to the one where it is done first."""
        loads = self._backlog.loads()
        for request in self._in_flight.values():
            if request.can_move:
                self._dispatch(request, loads)

    def _dispatch(self, request: InFlightRequest, loads: DeviceLoads) -> None:
        """If no worker is ready the request waits where it is."""
        if not self.is_ready:
            return
        before, request.worker = request.worker, loads.place(request)
        if before is request.worker:
            return
        if before is not None:
            before.send(Abort(request.request.request_id))
        request.worker.send(request.request)
