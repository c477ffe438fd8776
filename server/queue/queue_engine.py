"""The engine of a server with a queue: submits requests to the fleet, and runs those that it pulls."""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from engine.client.backlog import Forecast
from engine.client.in_flight import InFlightRequest, InFlightRequests
from engine.config.model_config import ModelConfig
from engine.cost import DeviceSpeed
from engine.errors import EngineDeadError
from engine.messages import RequestDone, RequestOutput, UnitKind
from engine.precision import Precision
from engine.request import EngineRequest, Priority
from server.access.api_keys import Caller
from server.adapters.catalog import Catalog
from server.engine_port import Engine, EngineStats, QueueStats
from server.generation.idempotency import Fingerprint
from server.generation.sharing import Permit
from server.generation.transcript import Transcript
from server.queue.connection.access import Access
from server.queue.connection.broker import Broker
from server.queue.fleet import BEAT_SECONDS, Fleet
from server.queue.front.answers import Answers
from server.queue.front.backlog import FleetBacklog
from server.queue.front.claims import Claims
from server.queue.front.seats import Seats
from server.queue.front.sharing import FleetSharing
from server.queue.front.submission import Submission
from server.queue.front.submissions import Submissions
from server.queue.worker.worker import Worker
from server.settings.http_settings import HttpSettings

Tokenize = Callable[[str], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class QueueEngineStats:
    """Requests are those of this front, devices are those of the fleet, and the rest is of this process."""

    running: int
    waiting: int
    restarts: int
    device_memory_bytes: int
    cache_hits: int
    cache_misses: int
    devices: Mapping[str, int]
    start_seconds: float


class QueueEngine:
    """Has a front unless `tokenize` is None, and a worker unless `local` is."""

    def __init__(
        self,
        config: ModelConfig,
        settings: HttpSettings,
        access: Access,
        adapters: Catalog,
        *,
        local: Engine | None,
        tokenize: Tokenize | None,
        beat_seconds: float = BEAT_SECONDS,
    ) -> None:
        self._config = config
        self.broker = Broker(access)
        self._in_flight = InFlightRequests()
        self._fleet = Fleet(
            self.broker, config, secrets.token_hex(8), lambda: not self._in_flight, beat_seconds
        )
        self._tokenize = tokenize
        self._local = local
        self._adapters = adapters
        self.worker = Worker(local, self.broker, self._fleet, adapters) if local else None
        self._submitted: dict[str, Submission] = {}
        self._backlog = FleetBacklog(self._fleet, self._in_flight)
        self._sharing = FleetSharing(
            self.broker,
            self._fleet,
            self._backlog,
            Answers.of(self.broker, settings),
            Claims(self.broker, self._fleet),
            Seats(self.broker, self._fleet),
        )
        self._submissions = Submissions(self.broker, config.model_id, self._fleet, self._sharing.taken_over)
        if tokenize is not None:
            self._fleet.add(self._backlog.news)

    async def start(self) -> None:
        """Raises ConfigError if the broker cannot be used."""
        if self._local is not None:
            await self._local.start()
        await self._adapters.start()
        await self.broker.connect()
        if self._tokenize is not None:
            await self._submissions.start()
            await self._sharing.start()
        if self.worker is not None:
            await self.worker.start()
        await self._fleet.start()

    async def close(self) -> None:
        for in_flight in self._in_flight.values():
            in_flight.fail(EngineDeadError("the engine is closed"))
        if self.worker is not None:
            await self.worker.close()
        await self._sharing.close()
        await self._submissions.close()
        await self._fleet.close()
        await self.broker.close()
        if self._local is not None:
            await self._local.close()

    @property
    def config(self) -> ModelConfig:
        """With the fingerprint of the checkpoint that this process serves now."""
        if self._config.fingerprint != self._fleet.checkpoint:
            self._config = replace(self._config, fingerprint=self._fleet.checkpoint)
        return self._config

    def queue_stats(self) -> QueueStats:
        return self.worker.stats() if self.worker else QueueStats()

    def begin_drain(self) -> None:
        """Pull nothing more, unless requests of this process may be in the queue."""
        if self.worker is not None and self._tokenize is None:
            self.worker.begin_drain()

    async def drained(self) -> None:
        if self.worker is not None:
            self.worker.begin_drain()
            await self.worker.drained()

    @property
    def is_up(self) -> bool:
        return self.broker.is_up

    @property
    def is_ready(self) -> bool:
        """Whether this process can do its part; for a front, whether a device of the fleet takes work."""
        if self._tokenize is None and self._local is not None:
            return self.broker.is_up and self._local.is_ready
        return self.broker.is_up and bool(self._fleet.speeds())

    @property
    def precision(self) -> Precision | None:
        return self._fleet.precision()

    async def wait_dead(self) -> EngineDeadError:
        """Wait until no device of this process, or no broker, can ever be ready again."""
        ends = [asyncio.create_task(self._broker_ends())]
        if self._local is not None:
            ends.append(asyncio.create_task(self._local.wait_dead()))
        try:
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for end in ends:
                end.cancel()

    async def _broker_ends(self) -> EngineDeadError:
        await self.broker.wait_ended()
        return EngineDeadError("the broker refuses to restore the connection")

    async def enter(
        self, request_id: str, caller: Caller, fingerprint: Fingerprint | None, deadline: float
    ) -> Permit | Transcript | None:
        return await self._sharing.enter(request_id, caller, fingerprint, deadline)

    def tokenize(self, prompt: str) -> tuple[int, ...]:
        """Raises PromptTooLongError."""
        assert self._tokenize is not None
        return self._tokenize(prompt)

    def forecast(self, request: EngineRequest) -> list[Forecast]:
        """One forecast for the whole fleet."""
        return [self._backlog.forecast(request)]

    def speeds(self) -> Sequence[DeviceSpeed]:
        """Of all devices of the fleet that take work."""
        return self._fleet.speeds()

    def backlog_seconds(self, priority: Priority) -> float:
        return self._backlog.seconds(priority)

    def first_done_seconds(self, request_ids: Iterable[str]) -> float:
        return self._backlog.first_done_seconds(request_ids)

    def reserve(self, request: EngineRequest, deadline: float | None = None) -> InFlightRequest:
        """As of EngineClient."""
        return self._in_flight.reserve(request, deadline)

    def release(self, request_id: str) -> None:
        """Remove a request in flight, and abort it unless it is answered. An unknown id is ignored."""
        self._in_flight.pop(request_id, None)
        submission = self._submitted.pop(request_id, None)
        if submission is not None:
            self._submissions.leave(submission)

    def promote(self, request_id: str, deadline: float | None, priority: Priority) -> None:
        """Extend the deadline or raise the priority of a request in flight. An unknown id is ignored."""
        promoted = self._in_flight.promote(request_id, deadline, priority)
        submission = self._submitted.get(request_id)
        if promoted and submission:
            self._submissions.promote(submission)

    def stats(self) -> EngineStats:
        running = sum(request.has_begun for request in self._in_flight.values())
        local = self._local.stats() if self._local else None
        return QueueEngineStats(
            running=running,
            waiting=len(self._in_flight) - running,
            restarts=local.restarts if local else 0,
            device_memory_bytes=local.device_memory_bytes if local else 0,
            cache_hits=local.cache_hits if local else 0,
            cache_misses=local.cache_misses if local else 0,
            devices=self._fleet.devices() if self._tokenize or local is None else local.devices,
            start_seconds=local.start_seconds if local else 0.0,
        )

    def subscribe(self, listener: Callable[[UnitKind, int, float], None]) -> None:
        """Of the devices of this process."""
        if self._local is not None:
            self._local.subscribe(listener)

    async def generate(self, request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
        """As of EngineClient."""
        in_flight = self.reserve(request)
        in_flight.request = replace(request, is_suspect=False)
        in_flight.start()
        self._submitted[request.request_id] = self._submissions.submit(in_flight)
        try:
            while True:
                output = await in_flight.next_output()
                yield output
                if isinstance(output, RequestDone):
                    return
        finally:
            self.release(request.request_id)
