"""Deliveries from a real broker to a real receiver."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from threading import Event

import pytest
from pydantic import SecretStr
from standardwebhooks import Webhook

from server.queue.connection.broker import Access, Broker
from server.queue.names import WEBHOOKS
from server.upstream.client import UpstreamClients
from server.webhooks import deliveries
from server.webhooks.addresses import Resolver
from server.webhooks.deliveries import RETRIES, Deliveries
from server.webhooks.hosts import AllowedHosts
from server.webhooks.sender import Sender
from server.webhooks.signature import Signer
from tests.server import fake_upstream
from tests.server.fake_upstream import FakeUpstream, Handler, is_json
from tests.server.process import HANG
from tests.server.queue.nats_server import NatsServer

SECRET = "whsec_" + "a2V5IG9mIHRoZSB0ZXN0cywgMzIgYnl0ZXMgbG9uZyE="
# Every 50 ms, for long enough on a busy machine.
SOON = tuple(0.05 * k for k in range(1, 1000))
BODY = b'{"type": "job.completed"}'


@pytest.fixture
def receiver() -> Iterator[FakeUpstream]:
    with fake_upstream.upstream(is_json, {}) as receiver:
        yield receiver


class Front:
    """Delivers as a front does; `retries` are in seconds. `dead` are the reasons of dead letters."""

    def __init__(self, broker: Broker, *hosts: str, retries: tuple[float, ...] = SOON) -> None:
        self.dead: list[str] = []
        self.broker = broker
        self._resolver = Resolver(allow_private=True)
        self._clients = UpstreamClients(lambda *_: None, self._resolver.resolve)
        sender = Sender(Signer("--flag", SecretStr(SECRET)), self._clients, seconds=20)
        allowed = AllowedHosts(tuple(hosts), allow_private=True)
        self.deliveries = Deliveries(broker, allowed, sender, self.dead.append, retries)

    async def enqueue(self, url: str, *ids: str) -> None:
        for each in ids:
            await self.deliveries.enqueue(each, url, BODY)

    async def left(self) -> int:
        """Messages in the stream."""
        return (await self.broker.jetstream.stream_info(WEBHOOKS.name)).state.messages

    async def emptied(self) -> None:
        """Wait until nothing is left in the stream."""
        async with asyncio.timeout(HANG):
            while await self.left():  # noqa: ASYNC110 a stream does not announce removals
                await asyncio.sleep(0.02)

    async def close(self) -> None:
        await self._clients.close()
        self._resolver.close()


@asynccontextmanager
async def delivering(server: NatsServer, *hosts: str, **options: tuple[float, ...]) -> AsyncIterator[Front]:
    """A front that delivers until the end of the block."""
    broker = Broker(Access((server.url,)))
    await broker.connect()
    front = Front(broker, *hosts, **options)
    task = asyncio.create_task(front.deliveries.run())
    try:
        yield front
    finally:
        task.cancel()
        await asyncio.wait([task])
        await front.close()
        await broker.close()


async def arrived(receiver: FakeUpstream, count: int = 1) -> None:
    for _ in range(count):
        assert await asyncio.to_thread(receiver.arrived.acquire, timeout=HANG)


def ids(receiver: FakeUpstream) -> list[str]:
    return [asked.headers["webhook-id"] for asked in receiver.asked]


def test_the_stream_keeps_messages_longer_than_the_retries_take() -> None:
    assert RETRIES[:3] == (5, 305, 2105)
    assert 75 * 3600 < RETRIES[-1] < WEBHOOKS.max_age - 3600


def test_messages_are_delivered_and_removed(nats_server: NatsServer, receiver: FakeUpstream) -> None:
    async def scenario() -> None:
        async with delivering(nats_server, receiver.url) as front:
            await front.enqueue(f"{receiver.url}/hook", "job-1", "job-2", "job-1")
            await arrived(receiver, 2)
            await front.emptied()

    asyncio.run(scenario())
    assert sorted(ids(receiver)) == ["job-1", "job-2"]
    for asked in receiver.asked:
        assert (asked.path, asked.body) == ("/hook", BODY)
        Webhook(SECRET).verify(asked.body, dict(asked.headers))


def test_a_failed_message_is_retried_with_its_id(nats_server: NatsServer, receiver: FakeUpstream) -> None:
    async def scenario() -> None:
        receiver.next.extend([fake_upstream.fails, fake_upstream.drops, fake_upstream.redirects])
        async with delivering(nats_server, receiver.url) as front:
            await front.enqueue(receiver.url, "job-retried")
            await arrived(receiver, 4)
            await front.emptied()
            assert front.dead == []

    asyncio.run(scenario())
    assert ids(receiver) == ["job-retried"] * 4


def test_attempts_follow_the_schedule(nats_server: NatsServer, receiver: FakeUpstream) -> None:
    """A busy machine may be late for one of them, never early."""
    times: list[float] = []

    def fails(handler: Handler) -> None:
        times.append(time.time())
        fake_upstream.fails(handler)

    async def scenario() -> float:
        receiver.next.extend([fails] * 4)
        async with delivering(nats_server, receiver.url, retries=(0.2, 0.5)) as front:
            published = time.time()
            await front.enqueue(receiver.url, "job-scheduled")
            await front.emptied()
            assert front.dead == ["status"]
            return published

    published = asyncio.run(scenario())
    assert 2 <= len(times) <= 3
    assert times[-1] >= published + 0.5
    assert times[1] >= published + 0.2


def test_a_receiver_that_is_gone_gets_no_retry(nats_server: NatsServer, receiver: FakeUpstream) -> None:
    async def scenario() -> None:
        receiver.next.append(lambda handler: handler.send(b"", 410))
        async with delivering(nats_server, receiver.url) as front:
            await front.enqueue(receiver.url, "job-gone")
            await front.emptied()
            assert front.dead == ["gone"]

    asyncio.run(scenario())
    assert ids(receiver) == ["job-gone"]


def test_a_host_that_is_no_longer_allowed_gets_nothing(
    nats_server: NatsServer, receiver: FakeUpstream
) -> None:
    """It is given up at the end of the schedule: another server may allow it."""

    async def scenario() -> None:
        async with delivering(nats_server, "hooks.example.com", retries=(0.05, 0.1)) as front:
            await front.enqueue(receiver.url, "job-disallowed")
            await front.emptied()
            assert front.dead == ["not_allowed"]

    asyncio.run(scenario())
    assert receiver.asked == []


def test_a_message_that_cannot_be_read_does_not_end_deliveries(
    start_nats: Callable[..., NatsServer], receiver: FakeUpstream
) -> None:
    async def scenario() -> None:
        async with delivering(start_nats(), receiver.url) as front:
            await front.broker.store(WEBHOOKS.subjects[0], b"?")
            await front.enqueue(receiver.url, "job-after")
            await arrived(receiver)

    asyncio.run(scenario())


def test_messages_survive_the_broker_and_the_front(
    start_nats: Callable[..., NatsServer], receiver: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One message has failed, and one is in an attempt, when both stop."""
    monkeypatch.setattr(deliveries, "REDELIVERY_SECONDS", 1.0)

    async def scenario() -> None:
        broker = start_nats()
        receiver.next.extend([fake_upstream.fails, fake_upstream.hangs])
        async with delivering(broker, receiver.url, retries=(1, 60)) as front:
            await front.enqueue(receiver.url, "job-failed", "job-in-an-attempt")
            await arrived(receiver, 2)
        broker.kill()
        broker.start()
        async with delivering(broker, receiver.url) as front:
            await arrived(receiver, 2)
            await front.emptied()

    asyncio.run(scenario())
    assert Counter(ids(receiver)) == {"job-failed": 2, "job-in-an-attempt": 2}


def test_delivery_goes_on_after_a_restart_of_the_broker(
    start_nats: Callable[..., NatsServer], receiver: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "REDELIVERY_SECONDS", 1.0)

    async def scenario() -> None:
        broker = start_nats()
        async with delivering(broker, receiver.url) as front:
            await front.enqueue(receiver.url, "job-before")
            await arrived(receiver)
            broker.kill()
            while front.broker.is_up:  # noqa: ASYNC110 the client finds out by itself
                await asyncio.sleep(0.01)
            waiting = asyncio.create_task(front.enqueue(receiver.url, "job-meanwhile"))
            broker.start()
            await waiting
            await arrived(receiver)
            await front.emptied()

    asyncio.run(scenario())
    assert set(ids(receiver)) == {
        "job-before",
        "job-meanwhile",
    }  # a broker that is killed may forget the first


def test_a_dead_receiver_does_not_delay_others(
    nats_server: NatsServer, receiver: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand messages wait for a receiver that never responds; fewer run than there are slots."""
    asked = Event()

    def hangs(handler: Handler) -> None:
        asked.set()
        fake_upstream.hangs(handler)

    monkeypatch.setattr(deliveries, "REDELIVERY_SECONDS", 600.0)

    async def scenario() -> None:
        with fake_upstream.upstream(is_json, {}) as dead:
            dead.next.extend([hangs] * 1000)
            dead_url = dead.url.replace("127.0.0.1", "localhost")
            async with delivering(nats_server, dead_url, receiver.url) as front:
                await asyncio.gather(*(front.enqueue(dead_url, f"job-dead-{k}") for k in range(1000)))
                await asyncio.to_thread(asked.wait, HANG)
                await front.enqueue(receiver.url, "job-live")
                await arrived(receiver)
                assert len(dead.asked) == deliveries.MAX_AT_ONCE_PER_HOST
                assert await front.left() >= 1000

    asyncio.run(scenario())
    assert ids(receiver) == ["job-live"]
    asyncio.run(_purge(nats_server))


async def _purge(server: NatsServer) -> None:
    broker = Broker(Access((server.url,)))
    await broker.connect()
    await broker.jetstream.purge_stream(WEBHOOKS.name)
    await broker.close()
