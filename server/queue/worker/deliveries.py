"""The requests of the queue that a worker holds."""

import asyncio
import contextlib
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import get_args

import msgspec
import nats.errors
from msgspec import structs
from nats.aio.msg import Msg

from engine.errors import AdapterUnavailableError
from engine.request import AdapterUse
from server.adapters.catalog import Catalog
from server.engine_port import DeadLetter, Engine
from server.queue import names
from server.queue.connection.broker import Broker
from server.queue.fleet import Fleet
from server.queue.tasks import Tasks
from server.queue.wire import Done, Promotion, VersionError, Work, decode, encode
from server.queue.worker.delivery import MAX_DEATHS, Delivery
from server.queue.worker.results import Results

KEEP_BEATS = 1.5
# Time for fronts to connect again and delete their requests.
ABORT_BEATS = 2
CLOSE_SECONDS = 2.0
# Aborts of requests that are on their way to this worker.
MAX_ABORTED = 10_000
# Time for workers to notice a new file.
ADAPTER_BEATS = 10
# After which a request for another checkpoint is delivered again.
FOREIGN_BEATS = 0.5

logger = logging.getLogger(__name__)


class Deliveries:
    """Holds each until it is answered, aborted, or given back. Calls `on_change` when one needs less of a
    device."""

    def __init__(
        self,
        engine: Engine,
        broker: Broker,
        fleet: Fleet,
        adapters: Catalog,
        on_change: Callable[[], None],
    ) -> None:
        self.pulled = self.redelivered = 0
        self.dead_letters: Counter[DeadLetter] = Counter(dict.fromkeys(get_args(DeadLetter), 0))
        self._engine = engine
        self._broker = broker
        self._fleet = fleet
        self._adapters = adapters
        self._on_change = on_change
        self._held: dict[str, Delivery] = {}
        self._aborted: OrderedDict[str, None] = OrderedDict()
        self._left = asyncio.Event()
        self._tasks = Tasks()
        self._yields_until = 0.0
        fleet.on_front_gone(self._on_front_gone)
        broker.on_reconnect(self._drop_deleted)

    @property
    def held(self) -> Collection[Delivery]:
        return self._held.values()

    @property
    def has_suspect(self) -> bool:
        """Whether a worker may have died with one of them: it runs alone."""
        return any(delivery.is_suspect for delivery in self.held)

    @property
    def is_yielding(self) -> bool:
        """Whether a request that was given back for another worker may be delivered soon."""
        return time.monotonic() < self._yields_until

    async def start(self) -> None:
        """Call it once the broker is connected."""
        await self._broker.client.subscribe(names.control("results.*.*"), cb=self._on_control)
        self._tasks.spawn(self._keep())

    async def close(self) -> None:
        """Give back what is held."""
        self._tasks.cancel()
        given = [asyncio.create_task(delivery.give_back()) for delivery in self.held]
        if given:
            await asyncio.wait(given, timeout=CLOSE_SECONDS)

    async def add(self, message: Msg) -> Delivery | None:
        """Run the request of a message. Returns None if nobody waits for it, or it cannot be read."""
        try:
            work = decode(message.data, Work)
        except VersionError as error:
            await self._refuse(message, error)
        except msgspec.MsgspecError as error:
            logger.error("a message cannot be read and is dropped: %s", error)
            await self._bury(message, "unreadable")
        else:
            return await self._accept(message, work)
        return None

    async def _accept(self, message: Msg, work: Work) -> Delivery | None:
        if work.reply in self._held:
            self._held[work.reply].message = message
        elif self._is_unwanted(work):
            await message.ack()
            if self._fleet.is_front_gone(names.front_of(work.reply)):
                await self._notify(names.front_of(work.reply))
        elif work.checkpoint != self._fleet.checkpoint:
            await self._yield(message, FOREIGN_BEATS * self._fleet.beat_seconds)
        else:
            return await self._take(message, work)
        return None

    async def _yield(self, message: Msg, seconds: float) -> None:
        """Let another worker have it, in so many seconds."""
        self._yields_until = time.monotonic() + 2 * seconds
        await message.nak(seconds)

    def _is_unwanted(self, work: Work) -> bool:
        """Whether nobody waits for it."""
        is_late = work.deadline is not None and work.deadline <= self._broker.clock.now()
        is_gone = self._fleet.is_front_gone(names.front_of(work.reply))
        return is_late or is_gone or work.reply in self._aborted

    async def _refuse(self, message: Msg, error: VersionError) -> None:
        logger.error("%s", error)
        if names.is_reply(error.reply):
            done = Done(error="version", message=str(error))
            await self._broker.store(names.done(error.reply), encode(done))
        await self._bury(message, "version")

    async def _bury(self, message: Msg, reason: DeadLetter) -> None:
        """No worker shall have it again."""
        self.dead_letters[reason] += 1
        await message.term()

    async def _take(self, message: Msg, work: Work) -> Delivery | None:
        """Run it with the files of this worker. If one is missing, another worker may have it."""
        uses = [(use, self._adapters.path(use.digest)) for use in work.request.adapters]
        missing = next((use for use, path in uses if path is None), None)
        if missing is None:
            adapters = tuple(replace(use, path=str(path)) for use, path in uses)
            request = replace(work.request, adapters=adapters)
            return self._hold(message, structs.replace(work, request=request))
        deadline = work.submitted + ADAPTER_BEATS * self._fleet.beat_seconds
        if self._fleet.has_adapter(missing.digest) or self._broker.clock.now() < deadline:
            await self._yield(message, self._fleet.beat_seconds)
        else:
            await self._fail(message, work, missing)
        return None

    async def _fail(self, message: Msg, work: Work, missing: AdapterUse) -> None:
        text = f"No worker has the file of the adapter `{missing.name}` with SHA-256 {missing.digest}"
        logger.error("%s", text)
        results = Results(self._broker, self._fleet.id, work.reply)
        await results.finish(Done.failed(AdapterUnavailableError(text)))
        await message.ack()

    def _hold(self, message: Msg, work: Work) -> Delivery:
        delivery = Delivery(
            message, work, self._engine, self._broker, self._fleet, self._on_change, self._until_alone
        )
        self._held[delivery.work.reply] = delivery
        self.pulled += 1
        delivery.task.add_done_callback(lambda _: self._let_go(delivery))
        return delivery

    def _let_go(self, delivery: Delivery) -> None:
        del self._held[delivery.work.reply]
        self.redelivered += delivery.deaths > 0
        self.dead_letters["worker_crashed"] += delivery.deaths >= MAX_DEATHS
        error = None if delivery.task.cancelled() else delivery.task.exception()
        if error is not None:  # it is delivered again
            logger.error("%s was not answered", delivery.request.request_id, exc_info=error)
        self._on_change()
        self._left.set()
        self._left = asyncio.Event()

    async def _until_alone(self, delivery: Delivery) -> None:
        """Wait until those before it have ended. None follows a suspect."""
        while next(iter(self.held)) is not delivery:
            await self._left.wait()

    async def _keep(self) -> None:
        """Keep the broker from delivering again what is held, and drop what a front has left."""
        while True:
            await asyncio.sleep(KEEP_BEATS * self._fleet.beat_seconds)
            for front in {names.front_of(delivery.work.reply) for delivery in self.held}:
                if self._fleet.is_front_gone(front):
                    await self._drop_all_of(front)
            for delivery in list(self.held):
                if self._broker.is_up:
                    with contextlib.suppress(nats.errors.Error):
                        await delivery.keep()

    async def _on_control(self, message: Msg) -> None:
        reply = message.subject.partition(".")[2]
        delivery = self._held.get(reply)
        if not message.data:
            self._abort(reply)
        elif delivery is not None:
            try:
                delivery.promote(decode(message.data, Promotion))
            except (VersionError, msgspec.MsgspecError) as error:
                logger.warning("a promotion is ignored: %s", error)

    def _abort(self, reply: str) -> None:
        self._aborted[reply] = None
        if len(self._aborted) > MAX_ABORTED:
            self._aborted.popitem(last=False)
        if reply in self._held:
            self._tasks.spawn(self._held[reply].drop())

    def _on_front_gone(self, front: str) -> None:
        self._tasks.spawn(self._drop_all_of(front))

    async def _drop_all_of(self, front: str) -> None:
        """Drop what is held for a front that is gone, and its results."""
        held = [each for each in self.held if names.front_of(each.work.reply) == front]
        await asyncio.gather(*(delivery.drop() for delivery in held))
        await self._broker.purge(names.RESULTS, names.results(front, ">"))
        await self._broker.purge(names.UPLOADS, f"{names.uploads(front)}.>")
        await self._notify(front)

    async def _notify(self, front: str) -> None:
        """A front that is alive after all submits its requests again."""
        if self._broker.is_up:
            await self._broker.client.publish(names.gone(front), b"")

    async def _drop_deleted(self) -> None:
        """After an outage: drop what fronts have deleted, whose aborts may have been lost."""
        await asyncio.sleep(ABORT_BEATS * self._fleet.beat_seconds)
        for delivery in list(self.held):
            if not await delivery.is_wanted():
                await delivery.drop()
