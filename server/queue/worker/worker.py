"""The worker: pulls requests when its devices can begin them soon."""

import asyncio
import contextlib
import logging
from typing import get_args

import nats.errors
from nats.aio.msg import Msg
from nats.js.errors import APIError

from engine.request import Priority
from server.adapters.catalog import Catalog
from server.engine_port import Engine, QueueStats
from server.queue import names
from server.queue.connection.broker import Broker
from server.queue.fleet import Fleet
from server.queue.tasks import Tasks
from server.queue.wire import WorkerNews
from server.queue.worker.capacity import BatchShare, Capacity
from server.queue.worker.deliveries import Deliveries
from server.queue.worker.pull import MAX_LEVEL, Pull

# A message is delivered again after six beats, when the silence of its worker has been noticed.
ACK_BEATS = 6
POLL_SECONDS = 1.0
REFRESH_SECONDS = 2.0

logger = logging.getLogger(__name__)


class Worker:
    """Runs the requests of the queue on `engine`, which it does not start."""

    def __init__(self, engine: Engine, broker: Broker, fleet: Fleet, adapters: Catalog) -> None:
        self._engine = engine
        self._broker = broker
        self._fleet = fleet
        self._adapters = adapters
        self._pulls = {priority: self._pull(priority) for priority in get_args(Priority)}
        self._capacity = Capacity(engine)
        self._share = BatchShare()
        self._deliveries = Deliveries(engine, broker, fleet, adapters, self._on_change)
        self._changed = asyncio.Event()
        self._is_draining = False
        self._tasks = Tasks()
        fleet.add(self._news)

    async def start(self) -> None:
        """Call it once the broker is connected."""
        for pull in self._pulls.values():
            await pull.start()
        await self._deliveries.start()
        self._tasks.spawn(self._run())
        self._tasks.spawn(self._refresh())

    def begin_drain(self) -> None:
        """Pull nothing more."""
        self._is_draining = True

    async def drained(self) -> None:
        """Wait until nothing is held."""
        while self._deliveries.held:
            await self._change()

    async def close(self) -> None:
        """Give back what is held."""
        self._is_draining = True
        self._tasks.cancel()
        await self._deliveries.close()

    def stats(self) -> QueueStats:
        held = self._deliveries.held
        return QueueStats(
            pulled=self._deliveries.pulled,
            redelivered=self._deliveries.redelivered,
            held=len(held),
            unsent=sum(delivery.is_generated for delivery in held),
            waiting={priority: pull.waiting for priority, pull in self._pulls.items()},
            oldest_seconds={priority: pull.oldest_seconds for priority, pull in self._pulls.items()},
            dead_letters=self._deliveries.dead_letters,
        )

    def _pull(self, priority: Priority) -> Pull:
        model_id, ack_seconds = self._engine.config.model_id, ACK_BEATS * self._fleet.beat_seconds
        subject, consumer = names.work(model_id, priority), names.consumer(model_id, priority)
        return Pull(self._broker, subject, consumer, ack_seconds, self._on_late)

    def _news(self) -> WorkerNews:
        return WorkerNews(
            id=self._fleet.id,
            checkpoint=self._fleet.checkpoint,
            speeds=() if self._is_draining else tuple(self._engine.speeds()),
            precision=self._engine.precision,
            devices=dict(self._engine.stats().devices),
            held=tuple(delivery.work.reply for delivery in self._deliveries.held),
            adapters=() if self._is_draining else self._adapters.digests,
        )

    def _on_change(self) -> None:
        self._changed.set()

    async def _change(self) -> None:
        """Wait until a request needs less of a device, at most for a while: devices change too."""
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL_SECONDS):
                await self._changed.wait()

    async def _run(self) -> None:
        while True:
            if not self._can_pull:
                await self._change()
                continue
            try:
                await self._pull_one()
            except (nats.errors.Error, OSError) as error:
                logger.warning("no work was pulled: %s", error or type(error).__name__)
                await self._change()
            except Exception as error:  # of one message, which must not end the others
                logger.error("a message was not taken", exc_info=error)

    @property
    def _can_pull(self) -> bool:
        is_open = self._broker.is_up and not self._is_draining
        held = self._deliveries
        return is_open and not held.has_suspect and self._capacity.has_room(held.held)

    async def _pull_one(self) -> None:
        """Take the next request, or wait for one of either priority."""
        level = self._level
        for priority in self._share.order:
            message = await self._pulls[priority].next(level, 0)
            if message is not None:
                await self._take(message)
                return
        polls = {asyncio.create_task(pull.next(level, POLL_SECONDS)) for pull in self._pulls.values()}
        done, pending = await asyncio.wait(polls, return_when=asyncio.FIRST_COMPLETED)
        for poll in pending:
            poll.cancel()
        for poll in done:
            message = poll.result()
            if message is not None:
                await self._take(message)

    @property
    def _level(self) -> int:
        """Of pulls: an idle worker is served first, and one that yields last."""
        load = 1.0 if self._deliveries.is_yielding else self._capacity.load(self._deliveries.held)
        return min(MAX_LEVEL, round(MAX_LEVEL * load))

    async def _take(self, message: Msg) -> None:
        if self._is_draining:  # which began after the pull
            await message.nak()
            return
        delivery = await self._deliveries.add(message)
        if delivery is not None:
            self._share.pulled(delivery.request, self._capacity.cost)

    def _on_late(self, message: Msg) -> None:
        """Another worker is served if this one has no room any more."""
        self._tasks.spawn(self._take(message) if self._can_pull else message.nak())

    async def _refresh(self) -> None:
        """Look at the requests in the queue, for metrics."""
        while True:
            for pull in self._pulls.values():
                with contextlib.suppress(nats.errors.Error, APIError, TimeoutError):
                    await pull.refresh()
            await asyncio.sleep(REFRESH_SECONDS)
