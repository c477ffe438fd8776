"""The interface of the engine that the server uses."""

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from engine.client.backlog import Forecast
from engine.config.model_config import ModelConfig
from engine.cost import DeviceSpeed
from engine.errors import EngineDeadError
from engine.messages import RequestOutput, UnitKind
from engine.precision import Precision
from engine.request import EngineRequest, Priority

# Why no worker runs a message: it cannot be read, has another version, or two workers died with it.
DeadLetter = Literal["unreadable", "version", "worker_crashed"]


class EngineStats(Protocol):
    """A snapshot of the engine."""

    @property
    def running(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def restarts(self) -> int: ...
    @property
    def device_memory_bytes(self) -> int: ...
    @property
    def cache_hits(self) -> int: ...
    @property
    def cache_misses(self) -> int: ...
    @property
    def devices(self) -> Mapping[str, int]: ...
    @property
    def start_seconds(self) -> float: ...


class InFlight(Protocol):
    """A reserved request, as the engine has promoted it."""

    @property
    def request(self) -> EngineRequest: ...
    @property
    def deadline(self) -> float | None: ...
    @property
    def has_begun(self) -> bool: ...


class Engine(Protocol):
    """Implemented by EngineClient and by the fake engine of the tests."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def is_ready(self) -> bool: ...
    @property
    def precision(self) -> Precision | None:
        """Of a device that is or was ready; None before one is."""

    async def start(self) -> None: ...
    async def close(self) -> None: ...
    async def wait_dead(self) -> EngineDeadError: ...
    def tokenize(self, prompt: str) -> tuple[int, ...]: ...
    def forecast(self, request: EngineRequest) -> Sequence[Forecast]: ...
    def speeds(self) -> Sequence[DeviceSpeed]: ...
    def backlog_seconds(self, priority: Priority) -> float: ...
    def first_done_seconds(self, request_ids: Iterable[str]) -> float: ...
    def reserve(self, request: EngineRequest, deadline: float | None = None) -> InFlight: ...
    def release(self, request_id: str) -> None: ...
    def generate(self, request: EngineRequest) -> AsyncGenerator[RequestOutput, None]: ...
    def promote(self, request_id: str, deadline: float | None, priority: Priority) -> None:
        """Extend the deadline or raise the priority of a request in flight. Ignores unknown ids."""

    def stats(self) -> EngineStats: ...
    def subscribe(self, listener: Callable[[UnitKind, int, float], None]) -> None: ...


@dataclass(frozen=True, slots=True)
class QueueStats:
    """Requests that this process has pulled since its start, and those that it answered after another worker
    had died with them; requests that it holds, and those whose results the broker has not stored. `waiting`
    in the queue and the seconds that the oldest of them has waited are by priority, as of the last seconds;
    only workers know them. `dead_letters` are messages that no worker runs, by reason."""

    pulled: int = 0
    redelivered: int = 0
    held: int = 0
    unsent: int = 0
    waiting: Mapping[Priority, int] = field(default_factory=dict)
    oldest_seconds: Mapping[Priority, float] = field(default_factory=dict)
    dead_letters: Mapping[DeadLetter, int] = field(default_factory=dict)


class Queue(Protocol):
    """What the server asks of its queue, if it has one."""

    @property
    def is_up(self) -> bool:
        """Whether the broker can be reached."""

    def queue_stats(self) -> QueueStats: ...
    def begin_drain(self) -> None:
        """Take no more work, unless requests of this server may be waiting for it."""

    async def drained(self) -> None:
        """Take no more work, and wait until the work in hand is done."""
