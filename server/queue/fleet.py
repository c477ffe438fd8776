"""What the fronts and workers of a model announce to each other: speeds, work, and that they are alive."""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

import msgspec
from nats.aio.msg import Msg

from engine.config.model_config import ModelConfig
from engine.cost import DeviceSpeed
from engine.precision import Precision
from server.queue import names
from server.queue.connection.broker import Broker
from server.queue.wire import FrontNews, VersionError, WorkerNews, decode, encode

# A change is announced at once, though not more often than this.
MIN_INTERVAL_SECONDS = 0.1
# Seconds between two announcements. All processes of a fleet need the same.
BEAT_SECONDS = 1.0
# A process is gone if this one has received so many of its own announcements since the last of that process.
# Time without a broker, and time in which this process was stopped, do not count.
GONE_BEATS = 4
# After a longer silence of this process, others may have counted so many beats. Their intervals vary.
SILENT_BEATS = 1.5

News = TypeVar("News", FrontNews, WorkerNews)
logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Known(Generic[News]):
    news: News
    beat: int


@dataclass(slots=True)
class _Members(Generic[News]):
    """The processes of one kind that are alive, by id."""

    known: dict[str, _Known[News]] = field(default_factory=dict)

    def heard(self, news: News, beat: int) -> None:
        if news.is_leaving:
            self.known.pop(news.id, None)
        else:
            self.known[news.id] = _Known(news, beat)

    def forget(self, beat: int) -> list[str]:
        """Remove those that are gone, and return their ids."""
        gone = [id_ for id_, each in self.known.items() if beat - each.beat >= GONE_BEATS]
        for id_ in gone:
            del self.known[id_]
        return gone

    def __iter__(self) -> Iterator[News]:
        return (each.news for each in self.known.values())

    def get(self, id_: str) -> News | None:
        known = self.known.get(id_)
        return known.news if known else None


class Fleet:
    """Announces this process, whose id is `id`, and keeps what the others announced, every `beat_seconds`.

    `checkpoint` is the fingerprint of the one that this process serves. Others may serve another one under
    the same model id. A process without weights serves that of the workers; "" until it knows one.
    """

    def __init__(
        self, broker: Broker, config: ModelConfig, id_: str, is_idle: Callable[[], bool], beat_seconds: float
    ) -> None:
        """`is_idle` tells whether a process without weights may serve another checkpoint."""
        self.id = id_
        self.checkpoint = config.fingerprint
        self.beat_seconds = beat_seconds
        self._broker = broker
        self._model_id = config.model_id
        self._has_weights = bool(config.fingerprint)
        self._is_idle = is_idle
        self._sources: list[Callable[[], FrontNews | WorkerNews]] = []
        self._gone_listeners: list[Callable[[str], None]] = []
        self._workers: _Members[WorkerNews] = _Members()
        self._fronts: _Members[FrontNews] = _Members()
        self._beats, self._last_beat = 0, 0.0
        self._heard = self._silent_until = 0.0
        self._settled_beats = GONE_BEATS
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._updated = asyncio.Event()

    def add(self, source: Callable[[], FrontNews | WorkerNews]) -> None:
        """Announce `source()` from now on."""
        self._sources.append(source)

    def on_front_gone(self, listener: Callable[[str], None]) -> None:
        """Call `listener(id)` when a front died."""
        self._gone_listeners.append(listener)

    async def start(self) -> None:
        """Call it once the broker is connected."""
        await self._broker.client.subscribe(names.news(self._model_id, "*", "*"), cb=self._on_message)
        self._task = asyncio.create_task(self._announce())

    async def close(self) -> None:
        """Announce that this process leaves."""
        if self._task is not None:
            self._task.cancel()
        for source in self._sources:
            await self._publish(msgspec.structs.replace(source(), is_leaving=True))

    def changed(self) -> None:
        """Announce this process soon."""
        self._changed.set()

    async def wait_updated(self) -> None:
        """Return at the next announcement of any process."""
        await self._updated.wait()

    def speeds(self) -> list[DeviceSpeed]:
        """Of all devices that take work."""
        return [speed for worker in self._own_workers for speed in worker.speeds]

    def precision(self) -> Precision | None:
        """Of any worker that announced it."""
        return next((worker.precision for worker in self._workers if worker.precision), None)

    def devices(self) -> Mapping[str, int]:
        """The number of devices by state."""
        total: Counter[str] = Counter()
        for worker in self._own_workers:
            total.update(worker.devices)
        return total

    def other_fronts(self) -> list[FrontNews]:
        """Of the same checkpoint."""
        return [
            front for front in self._fronts if front.id != self.id and front.checkpoint == self.checkpoint
        ]

    @property
    def _own_workers(self) -> list[WorkerNews]:
        """Of the same checkpoint."""
        return [worker for worker in self._workers if worker.checkpoint == self.checkpoint]

    def holds(self, worker: str, reply: str) -> bool:
        """Whether this worker is alive and has the request with these results."""
        known = self._workers.get(worker)
        return known is not None and reply in known.held

    def held(self) -> Set[str]:
        """The replies of all requests that workers have."""
        return {reply for worker in self._workers for reply in worker.held}

    def has_adapter(self, digest: str) -> bool:
        """Whether a worker that takes work has the file with this SHA-256."""
        return any(digest in worker.adapters for worker in self._own_workers)

    def is_front_gone(self, front: str) -> bool:
        """Whether this front left or died. False while this process has not listened for long enough."""
        return self.is_settled and self._fronts.get(front) is None

    @property
    def is_settled(self) -> bool:
        """Whether this process has listened for long enough to know all others."""
        return self._beats >= self._settled_beats and not self._is_silent

    def was_silent(self, since: float) -> bool:
        """Whether others may have taken this process for dead after `since`, of `time.monotonic()`."""
        return self._silent_until >= since or self._is_silent

    @property
    def _is_silent(self) -> bool:
        return time.monotonic() - self._heard > SILENT_BEATS * self.beat_seconds

    async def _announce(self) -> None:
        while True:
            for source in self._sources:
                await self._publish(source())
            await asyncio.sleep(MIN_INTERVAL_SECONDS)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), self.beat_seconds - MIN_INTERVAL_SECONDS)
            self._changed.clear()

    async def _publish(self, news: FrontNews | WorkerNews) -> None:
        if self._broker.is_up:
            subject = names.news(self._model_id, _kind(news), news.id)
            await self._broker.client.publish(subject, encode(news))

    async def _on_message(self, message: Msg) -> None:
        try:
            if message.subject.startswith(names.news(self._model_id, "front", "")):
                self._fronts.heard(decode(message.data, FrontNews), self._beats)
            else:
                self._on_worker(decode(message.data, WorkerNews))
        except (VersionError, msgspec.MsgspecError) as error:
            logger.warning("an announcement on %s is ignored: %s", message.subject, error)
            return
        if message.subject.endswith(f".{self.id}"):
            self._on_beat()
        self._updated.set()
        self._updated = asyncio.Event()

    def _on_worker(self, news: WorkerNews) -> None:
        if self._has_weights and news.checkpoint != self.checkpoint and not self._workers.get(news.id):
            message = "worker %s serves checkpoint %s of this model and is not used: this server has %s"
            logger.warning(message, news.id, news.checkpoint, self.checkpoint)
        self._workers.heard(self._with_known_costs(news), self._beats)
        if not (self._has_weights or news.is_leaving or self._own_workers) and self._is_idle():
            self.checkpoint = news.checkpoint

    def _with_known_costs(self, news: WorkerNews) -> WorkerNews:
        """The same, with the previous objects if nothing changed: predictions are cached by them."""
        before = self._workers.get(news.id)
        if before is None or before.speeds != news.speeds:
            return news
        return msgspec.structs.replace(news, speeds=before.speeds)

    def _on_beat(self) -> None:
        """Count at most one beat in an interval."""
        now = time.monotonic()
        self._on_own(now)
        if now < self._last_beat + self.beat_seconds / 2:
            return
        self._beats, self._last_beat = self._beats + 1, now
        self._workers.forget(self._beats)
        for front in self._fronts.forget(self._beats):
            for listener in self._gone_listeners:
                listener(front)

    def _on_own(self, now: float) -> None:
        """This process announced itself."""
        if self._is_silent:
            self._silent_until = now
        if now - self._heard > GONE_BEATS * self.beat_seconds:  # others may have started
            self._settled_beats = self._beats + GONE_BEATS
        self._heard = now


def _kind(news: FrontNews | WorkerNews) -> Literal["front", "worker"]:
    return "front" if isinstance(news, FrontNews) else "worker"
