"""EngineClient: the engine as the server's process sees it. Torch-free.

Every accepted request is answered: it is given to the worker with the least predicted backlog, and if
that worker dies, given again, from its seed, to the next one that is ready.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace

from engine.config import EngineOptions, ModelConfig
from engine.errors import DeadlineExceededError, EngineDeadError, GenerationError
from engine.messages import (
    Abort,
    EngineRequest,
    FromWorker,
    ImageDone,
    PreviewReady,
    RequestDone,
    RequestFailed,
    RequestOutput,
    StepDone,
    UnitDone,
    UnitKind,
    WorkerReady,
)
from engine.preflight import open_tokenizer
from engine.supervisor import Worker
from engine.ticket import Ticket
from engine.worker import main as worker_main

UnitListener = Callable[[UnitKind, int, float], None]
WorkerTarget = Callable[..., None]


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A moment of the engine. Bytes over all devices; the counters since the workers' start."""

    running: int
    waiting: int
    restarts: int
    device_memory_bytes: int
    cache_hits: int
    cache_misses: int


class EngineClient:
    """Owns the workers. All methods belong on one event loop."""

    def __init__(
        self, config: ModelConfig, options: EngineOptions, worker_target: WorkerTarget = worker_main
    ) -> None:
        """Raises CheckpointError if limits, configs, tokenizer and chat template do not fit each other."""
        self.config = config
        self._tokenizer = open_tokenizer(config)
        devices = options.devices or (None,)
        self._workers = [Worker(config, options, device, self, worker_target) for device in devices]
        self._tickets: dict[str, Ticket] = {}
        self._units: dict[Worker, UnitDone] = {}
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
        """Whether a worker is loaded and warmed up."""
        return any(worker.is_ready for worker in self._workers)

    async def wait_dead(self) -> EngineDeadError:
        """Returns once the engine can never be ready again."""
        await self._died.wait()
        assert self._death is not None
        return self._death

    def tokenize(self, prompt: str) -> tuple[int, ...]:
        """Raises PromptTooLongError."""
        return self._tokenizer.encode(prompt)

    def predict_seconds(self, request: EngineRequest) -> float:
        """Device seconds of the request alone; 0 before the first worker is ready."""
        cost = next((worker.cost_model for worker in self._workers if worker.cost_model), None)
        return 0.0 if cost is None else cost.request_seconds(request)

    def backlog_seconds(self) -> float:
        """Predicted seconds of accepted, unfinished work on the least loaded device."""
        return min(self._backlog(worker) for worker in self._workers)

    def stats(self) -> EngineStats:
        units = list(self._units.values())
        running = sum(bool(ticket.steps_done) for ticket in self._tickets.values())
        return EngineStats(
            running=running,
            waiting=len(self._tickets) - running,
            restarts=sum(worker.restarts for worker in self._workers),
            device_memory_bytes=sum(unit.device_memory_bytes for unit in units),
            cache_hits=sum(unit.cache_hits for unit in units),
            cache_misses=sum(unit.cache_misses for unit in units),
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
        ticket = Ticket(replace(request, submitted=time.monotonic()), self.predict_seconds(request))
        self._tickets[request.request_id] = ticket
        self._assign(ticket)
        try:
            while True:
                output = await self._next(ticket)
                yield output
                if isinstance(output, RequestDone):
                    return
        finally:
            self._forget(ticket)

    def on_message(self, worker: Worker, message: FromWorker) -> None:
        """Of Worker: pass outputs on, take note of the rest."""
        match message:
            case WorkerReady():
                self._deal()
            case UnitDone():
                self._units[worker] = message
                for listener in self._listeners:
                    listener(message.kind, message.batch_size, message.seconds)
            case StepDone() | PreviewReady() | ImageDone() | RequestDone() | RequestFailed():
                ticket = self._tickets.get(message.request_id)
                if ticket is not None and ticket.worker is worker:
                    self._deliver(ticket, message)

    def on_death(self, worker: Worker, suspects: tuple[str, ...]) -> None:
        """Of Worker: its requests run again; those it died on run alone, and not for ever."""
        self._units.pop(worker, None)
        for ticket in self._tickets.values():
            if ticket.worker is worker and not ticket.is_answered:
                ticket.start_again(suspects)
        self._deal()

    def on_dead_engine(self, error: EngineDeadError) -> None:
        """Of Worker: nothing can be served any more."""
        self._fail_all(error)
        self._died.set()

    def _fail_all(self, error: EngineDeadError) -> None:
        self._death = self._death or error
        for ticket in self._tickets.values():
            ticket.put(error)

    async def _next(self, ticket: Ticket) -> RequestOutput:
        """Deadlines are in the event loop's own time."""
        try:
            async with asyncio.timeout_at(ticket.request.deadline):
                output = await ticket.outputs.get()
        except TimeoutError:
            raise DeadlineExceededError("the deadline passed") from None
        if isinstance(output, Exception):
            raise output
        if isinstance(output, RequestFailed):
            raise GenerationError(output.message)
        return output

    def _deliver(self, ticket: Ticket, output: RequestOutput) -> None:
        """Once: what a first run sent already is not sent again by a second."""
        match output:
            case StepDone():
                ticket.steps_done[output.image_index] = output.step
            case PreviewReady():
                key = (output.image_index, output.preview_index)
                if key in ticket.previews_sent:
                    return
                ticket.previews_sent.add(key)
            case ImageDone():
                request = ticket.request
                ticket.request = replace(request, skip=request.skip | {output.image_index})
        ticket.put(output)

    def _forget(self, ticket: Ticket) -> None:
        """Done, failed or left: make sure that it costs nothing any more."""
        del self._tickets[ticket.request.request_id]
        worker = ticket.worker
        if worker is None:
            return
        if worker.is_ready and not ticket.is_answered:
            worker.send(Abort(ticket.request.request_id))
        if not any(other.worker is worker for other in self._tickets.values()):
            worker.went_idle()

    def _deal(self) -> None:
        """Give each request that no worker has begun to the one with the least backlog."""
        for ticket in self._tickets.values():
            has_begun = ticket.worker is not None and ticket.steps_done
            if not has_begun and not ticket.is_answered:
                self._assign(ticket)

    def _assign(self, ticket: Ticket) -> None:
        """If no worker is ready the ticket waits."""
        ready = [worker for worker in self._workers if worker.is_ready]
        if not ready:
            return
        ticket.seconds = ticket.seconds or self.predict_seconds(ticket.request)
        before, ticket.worker = ticket.worker, None
        ticket.worker = min(ready, key=self._backlog)
        if before is ticket.worker:
            return
        if before is not None:
            before.send(Abort(ticket.request.request_id))
        ticket.worker.send(ticket.request)

    def _backlog(self, worker: Worker) -> float:
        unassigned = sum(ticket.seconds for ticket in self._tickets.values() if ticket.worker is None)
        assigned = sum(ticket.seconds_left for ticket in self._tickets.values() if ticket.worker is worker)
        return assigned + unassigned / len(self._workers)
