"""The webhooks of a server, from its settings."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from standardwebhooks import Webhook

from server.observability.metrics import Metrics
from server.queue.connection.broker import Access, Broker
from server.settings.config_error import ConfigError
from server.settings.settings import Settings
from server.webhooks.webhooks import Webhooks
from tests.server import fake_upstream
from tests.server.fake_engine import FakeEngine
from tests.server.process import HANG
from tests.server.queue.nats_server import NatsServer

SECRET = "whsec_" + "a2V5IG9mIHRoZSB0ZXN0cywgMzIgYnl0ZXMgbG9uZyE="


def webhooks(broker: Broker, **settings: Any) -> Webhooks:
    metrics = Metrics(FakeEngine())
    return Webhooks(Settings(model="m", **settings), broker, metrics.on_upstream, metrics.on_dead_letter)


def test_a_message_is_sent_signed_with_the_secret_of_the_file(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\n")

    async def scenario(receiver: fake_upstream.FakeUpstream) -> None:
        broker = Broker(Access((nats_server.url,)))
        await broker.connect()
        sent = webhooks(
            broker, webhook_hosts=receiver.url, webhook_allow_private=True, webhook_secret_file=file
        )
        sent.start()
        await sent.enqueue("job-9", sent.check(receiver.url), b'{"type": "job.failed"}')
        assert await asyncio.to_thread(receiver.arrived.acquire, timeout=HANG)
        await sent.close()
        await broker.close()

    with fake_upstream.upstream(fake_upstream.is_json, {}) as receiver:
        asyncio.run(scenario(receiver))
        [asked] = receiver.asked
    assert Webhook(SECRET).verify(asked.body, dict(asked.headers)) == {"type": "job.failed"}


def test_a_server_without_hosts_leaves_messages_to_others(nats_server: NatsServer) -> None:
    async def scenario() -> None:
        broker = Broker(Access((nats_server.url,)))
        await broker.connect()
        with fake_upstream.upstream(fake_upstream.is_json, {}) as receiver:
            allowed = {"webhook_hosts": receiver.url, "webhook_allow_private": True}
            without, other = webhooks(broker), webhooks(broker, **allowed, webhook_secret=SecretStr(SECRET))
            without.start()
            await without.enqueue("job-8", receiver.url + "/", b"{}")
            other.start()
            assert await asyncio.to_thread(receiver.arrived.acquire, timeout=HANG)
            await other.close()
            await without.close()
        await broker.close()

    asyncio.run(scenario())


def test_hosts_need_a_secret() -> None:
    broker = Broker(Access(("nats://127.0.0.1:1",)))
    with pytest.raises(ConfigError, match="--webhook-secret-file or IDEOSERVE_WEBHOOK_SECRET is required"):
        webhooks(broker, webhook_hosts="hooks.example.com")
    with pytest.raises(ConfigError, match="--webhook-secret-file: a secret is whsec_"):
        webhooks(broker, webhook_hosts="hooks.example.com", webhook_secret=SecretStr("guess"))
    with pytest.raises(ConfigError, match=r"--webhook-hosts: \* is not"):
        webhooks(broker, webhook_hosts="*", webhook_secret=SecretStr(SECRET))
