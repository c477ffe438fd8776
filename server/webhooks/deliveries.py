"""Delivers the webhooks of a stream, each at least once."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from itertools import accumulate

from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig

from server.queue.connection.broker import Broker
from server.queue.names import WEBHOOKS
from server.upstream.client import UpstreamError
from server.webhooks.hosts import AllowedHosts, host_of
from server.webhooks.sender import Sender

SUBJECT = WEBHOOKS.subjects[0]
CONSUMER = "fronts"
ID, URL = "Nats-Msg-Id", "Webhook-Url"
# Seconds from the first attempt to each of the others: the schedule that the specification recommends.
RETRIES = tuple(accumulate((5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)))
REDELIVERY_SECONDS = 30.0  # after the death of the front that had the message
MAX_AT_ONCE = 64
MAX_AT_ONCE_PER_HOST = 4
# Of the messages to a host with that many attempts: the broker delivers them before new ones to other hosts.
RETURNS_PER_SECOND = 50
FETCH_SECONDS = 2.0  # also the delay after a restart of the broker
BROKER_AWAY_SECONDS = 1.0
GONE = 410

logger = logging.getLogger(__name__)
# Called with the reason when a message is given up.
OnDeadLetter = Callable[[str], None]


@dataclass(slots=True)
class _Host:
    """A receiver with attempts that run. `returns` is when the last of its waiting messages comes back."""

    attempts: int = 0
    returns: float = 0.0

    def return_seconds(self) -> float:
        now = time.monotonic()
        self.returns = max(self.returns, now) + 1 / RETURNS_PER_SECOND
        return self.returns - now


class Deliveries:
    """Any number of fronts share the stream.

    A message has no count of its attempts: when one fails, the next is due at the next time of the
    schedule, which starts when the message was published.
    """

    def __init__(
        self,
        broker: Broker,
        hosts: AllowedHosts,
        sender: Sender,
        on_dead_letter: OnDeadLetter,
        retries: tuple[float, ...] = RETRIES,
    ) -> None:
        self._broker = broker
        self._hosts = hosts
        self._sender = sender
        self._on_dead_letter = on_dead_letter
        self._retries = retries
        self._slots = asyncio.Semaphore(MAX_AT_ONCE)
        self._busy: dict[str, _Host] = {}

    async def enqueue(self, message_id: str, url: str, payload: bytes) -> None:
        """Store a message for delivery; waits while the broker is away."""
        await self._broker.store(SUBJECT, payload, {ID: message_id, URL: url})

    async def run(self) -> None:
        """Deliver until cancelled. A message whose attempt is cancelled is delivered again at once."""
        async with asyncio.TaskGroup() as attempts:
            async for message in self._messages():
                await self._slots.acquire()
                attempts.create_task(self._handle(message)).add_done_callback(lambda _: self._slots.release())

    async def _messages(self) -> AsyncIterator[Msg]:
        """Subscribe again after each error: the consumer may be lost with the data of the broker."""
        while True:
            try:
                subscription = await self._subscribe()
                async for message in _fetched(subscription):
                    yield message
            except NatsError as error:
                logger.debug("webhooks: %s", error)
                await asyncio.sleep(BROKER_AWAY_SECONDS)

    async def _subscribe(self) -> JetStreamContext.PullSubscription:
        config = ConsumerConfig(ack_wait=REDELIVERY_SECONDS, max_ack_pending=-1)
        return await self._broker.jetstream.pull_subscribe(
            SUBJECT, durable=CONSUMER, stream=WEBHOOKS.name, config=config
        )

    async def _handle(self, message: Msg) -> None:
        try:
            await self._deliver(message)
        except asyncio.CancelledError:
            await message.nak()
            raise
        except Exception:  # such as a broker that is away: it is delivered again
            logger.warning("a webhook was not settled", exc_info=True)

    async def _deliver(self, message: Msg) -> None:
        headers, started = message.headers or {}, self._broker.clock.now()
        url = headers.get(URL, "")
        busy = self._busy.get(host_of(url))
        if busy and busy.attempts >= MAX_AT_ONCE_PER_HOST:
            return await message.nak(busy.return_seconds())
        try:
            await self._attempt(url, headers[ID], message.data)
        except UpstreamError as error:
            return await self._failed(message, started, error)
        return await message.ack()

    async def _attempt(self, url: str, message_id: str, body: bytes) -> None:
        """The settings may have changed since the job was submitted."""
        host = host_of(url)
        if not self._hosts.allows(url):
            raise UpstreamError("not_allowed", "its host is not allowed")
        busy = self._busy.setdefault(host, _Host())
        busy.attempts += 1
        try:
            await self._sender.send(url, message_id, body)
        finally:
            busy.attempts -= 1
            if not busy.attempts:
                del self._busy[host]

    async def _failed(self, message: Msg, started: float, error: UpstreamError) -> None:
        published = message.metadata.timestamp.timestamp()
        due = next((published + after for after in self._retries if published + after > started), None)
        if error.status == GONE:
            await self._give_up(message, "gone")
        elif due is None:
            await self._give_up(message, error.kind)
        else:
            await message.nak(max(1 / RETURNS_PER_SECOND, due - self._broker.clock.now()))

    async def _give_up(self, message: Msg, reason: str) -> None:
        logger.warning("webhook %s is given up: %s", (message.headers or {}).get(ID), reason)
        self._on_dead_letter(reason)
        await message.term()


async def _fetched(subscription: JetStreamContext.PullSubscription) -> AsyncIterator[Msg]:
    try:
        while True:
            with contextlib.suppress(TimeoutError):
                for message in await subscription.fetch(1, timeout=FETCH_SECONDS):
                    yield message
    finally:
        with contextlib.suppress(NatsError):
            await subscription.unsubscribe()
