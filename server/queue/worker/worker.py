"""The worker: pulls requests when its devices can begin them soon, and holds them until they are answered."""

import asyncio
import logging
import time
from collections import OrderedDict
from typing import get_args

import msgspec
import nats.errors
from nats.aio.msg import Msg

from engine.request import Priority
from server.engine_port import Engine, QueueStats
from server.queue import names
from server.queue.broker import Broker
from server.queue.fleet import Fleet
from server.queue.wire import (
    Done,
    Promotion,
    VersionError,
    Work,
    WorkerNews,
    decode,
    encode,
)
from server.queue.worker.capacity import BatchShare, Capacity
from server.queue.worker.delivery import Delivery
from server.queue.worker.pull import ACK_SECONDS, MAX_LEVEL, Pull

POLL_SECONDS = 1.0
CLOSE_SECONDS = 2.0
KEEP_SECONDS = ACK_SECONDS / 4
# Aborts of requests that are on their way to this worker.
MAX_ABORTED = 10_000

logger = logging.getLogger(__name__)


class Worker:
    """Runs the requests of the queue on `engine`, which it does not start."""

    def __init__(self, engine: Engine, broker: Broker, fleet: Fleet) -> None:
        self._engine = engine
        self._broker = broker
        self._fleet = fleet
        self._held: dict[str, Delivery] = {}
        self._aborted: OrderedDict[str, None] = OrderedDict()
        self._pulls = {priority: self._pull(priority) for priority in get_args(Priority)}
        self._capacity = Capacity(engine)
        self._share = BatchShare()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._is_draining = False
        self._tasks: list[asyncio.Task[None]] = []
        self._pulled = self._redelivered = 0
        fleet.add(self._news)

    async def start(self) -> None:
        """Call it once the broker is connected."""
        for pull in self._pulls.values():
            await pull.start()
        await self._broker.client.subscribe(names.control("results.*.*"), cb=self._on_control)
        self._tasks = [asyncio.create_task(self._run()), asyncio.create_task(self._keep())]

    def begin_drain(self) -> None:
        """Pull nothing more."""
        self._is_draining = True
        self._check_idle()

    async def drained(self) -> None:
        """Wait until nothing is held."""
        self._check_idle()
        await self._idle.wait()

    async def close(self) -> None:
        """Give back what is held."""
        self._is_draining = True
        for task in self._tasks:
            task.cancel()
        given = [asyncio.create_task(delivery.give_back()) for delivery in self._held.values()]
        if given:
            await asyncio.wait(given, timeout=CLOSE_SECONDS)

    def stats(self) -> QueueStats:
        return QueueStats(
            pulled=self._pulled,
            redelivered=self._redelivered,
            held=len(self._held),
            unsent=sum(delivery.is_generated for delivery in self._held.values()),
            waiting={priority: pull.waiting for priority, pull in self._pulls.items()},
        )

    def _pull(self, priority: Priority) -> Pull:
        model_id = self._engine.config.model_id
        subject, consumer = names.work(model_id, priority), names.consumer(model_id, priority)
        return Pull(self._broker, subject, consumer, self._on_late)

    def _news(self) -> WorkerNews:
        speeds = () if self._is_draining else tuple(self._engine.speeds())
        return WorkerNews(
            id=self._fleet.id,
            speeds=speeds,
            devices=dict(self._engine.stats().devices),
            held=tuple(self._held),
        )

    # What to pull

    async def _run(self) -> None:
        while True:
            try:
                if self._can_pull:
                    await self._pull_one()
                else:
                    await self._change()
            except (nats.errors.Error, OSError) as error:
                logger.warning("no work was pulled: %s", error or type(error).__name__)
                await self._change()

    async def _change(self) -> None:
        """Wait until a request needs less of a device, at most for a while."""
        self._wake.clear()
        try:
            async with asyncio.timeout(POLL_SECONDS):
                await self._wake.wait()
        except TimeoutError:
            pass

    @property
    def _can_pull(self) -> bool:
        return self._broker.is_up and not self._is_draining and self._capacity.has_room(self._held.values())

    async def _pull_one(self) -> None:
        """Take the next request, or wait for one of either priority."""
        level = min(MAX_LEVEL, round(MAX_LEVEL * self._capacity.load(self._held.values())))
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

    # What is held

    def _on_late(self, message: Msg) -> None:
        task = asyncio.create_task(self._take_late(message))
        self._tasks.append(task)
        task.add_done_callback(self._tasks.remove)

    async def _take_late(self, message: Msg) -> None:
        """Another worker is served if this one has no room any more."""
        await (self._take(message) if self._can_pull else message.nak())

    async def _take(self, message: Msg) -> None:
        try:
            work = decode(message.data, Work)
        except VersionError as error:
            await self._refuse(message, error)
            return
        except msgspec.MsgspecError as error:
            logger.error("a message cannot be read and is dropped: %s", error)
            await message.term()
            return
        if self._is_unwanted(work):
            await message.ack()
        else:
            self._hold(Delivery(message, work, self._engine, self._broker, self._fleet, self._wake.set))

    def _is_unwanted(self, work: Work) -> bool:
        """Whether nobody waits for it, or it is held already."""
        is_late = work.deadline is not None and work.deadline <= time.time()
        is_gone = self._fleet.is_front_gone(names.front_of(work.reply))
        return is_late or is_gone or work.reply in self._aborted or work.reply in self._held

    async def _refuse(self, message: Msg, error: VersionError) -> None:
        logger.error("%s", error)
        if error.reply:
            await self._broker.store(f"{error.reply}.done", encode(Done(error="version", message=str(error))))
        await message.term()

    def _hold(self, delivery: Delivery) -> None:
        self._held[delivery.work.reply] = delivery
        self._pulled += 1
        self._redelivered += delivery.is_again
        self._share.pulled(delivery.request, self._capacity.cost)
        delivery.task.add_done_callback(lambda _: self._let_go(delivery))

    def _let_go(self, delivery: Delivery) -> None:
        del self._held[delivery.work.reply]
        error = None if delivery.task.cancelled() else delivery.task.exception()
        if error is not None:  # it is delivered again
            logger.error("%s was not answered", delivery.request.request_id, exc_info=error)
        self._wake.set()
        self._check_idle()

    def _check_idle(self) -> None:
        if self._is_draining and not self._held:
            self._idle.set()

    async def _keep(self) -> None:
        """Keep the broker from delivering what is held again; drop it if its front is gone."""
        while True:
            await asyncio.sleep(KEEP_SECONDS)
            try:
                await self._keep_once()
            except (nats.errors.Error, TimeoutError) as error:
                logger.warning("the broker does not answer: %s", error or type(error).__name__)

    async def _keep_once(self) -> None:
        for delivery in list(self._held.values()):
            if self._fleet.is_front_gone(names.front_of(delivery.work.reply)):
                await delivery.drop()
            elif self._broker.is_up:
                await delivery.keep()
        if self._broker.is_up:
            for pull in self._pulls.values():
                await pull.refresh()

    async def _on_control(self, message: Msg) -> None:
        reply = message.subject.partition(".")[2]
        delivery = self._held.get(reply)
        if not message.data:
            self._aborted[reply] = None
            if len(self._aborted) > MAX_ABORTED:
                self._aborted.popitem(last=False)
            if delivery is not None:
                await delivery.drop()
        elif delivery is not None:
            delivery.promote(decode(message.data, Promotion))
