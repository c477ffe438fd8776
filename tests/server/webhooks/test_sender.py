"""One attempt to deliver a webhook, to real receivers and to hostile ones."""

import asyncio
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from standardwebhooks import Webhook

from server.upstream.client import UpstreamClients, UpstreamError
from server.webhooks.addresses import Lookup, Resolver, look_up
from server.webhooks.sender import Sender
from server.webhooks.signature import Signer
from tests.server import fake_upstream
from tests.server.certificates import self_signed
from tests.server.fake_upstream import FakeUpstream, Reply, is_json

SECRET = "whsec_" + "a2V5IG9mIHRoZSB0ZXN0cywgMzIgYnl0ZXMgbG9uZyE="
BODY = b'{"type": "job.completed"}'
NAME = "receiver.test"


@pytest.fixture(scope="module")
def shared() -> Iterator[FakeUpstream]:
    with fake_upstream.upstream(is_json, {}) as receiver:
        yield receiver


@pytest.fixture
def receiver(shared: FakeUpstream) -> FakeUpstream:
    shared.reset({})
    return shared


def send(url: str, lookup: Lookup = look_up, allow_private: bool = True, seconds: float = 20) -> list[str]:
    """One attempt. Returns the outcome that is counted. Raises UpstreamError."""
    outcomes: list[str] = []

    async def attempt() -> None:
        resolver = Resolver(allow_private, lookup)
        clients = UpstreamClients(
            lambda name, outcome, _: outcomes.append(f"{name} {outcome}"), resolver.resolve
        )
        try:
            await Sender(Signer("--flag", SecretStr(SECRET)), clients, seconds).send(url, "job-1", BODY)
        finally:
            await clients.close()
            resolver.close()

    asyncio.run(attempt())
    return outcomes


def refusal(*arguments: Any, **options: Any) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        send(*arguments, **options)
    return caught.value


def answers(*addresses: str) -> Lookup:
    """A name server that always gives these addresses."""
    return lambda host, port: list(addresses)


def test_a_receiver_verifies_what_it_gets(receiver: FakeUpstream) -> None:
    assert send(f"{receiver.url}/hook?token=1") == ["job_webhook ok"]
    [asked] = receiver.asked
    assert asked.path == "/hook?token=1"
    assert Webhook(SECRET).verify(asked.body, dict(asked.headers)) == {"type": "job.completed"}
    assert asked.headers["webhook-id"] == "job-1"
    assert asked.headers["host"] == f"127.0.0.1:{receiver.port}"


def test_every_2xx_is_a_success(receiver: FakeUpstream) -> None:
    for status in (201, 202, 204, 299):
        receiver.next.append(lambda handler, status=status: handler.send(b"", status))  # type: ignore[misc]
        assert send(receiver.url) == ["job_webhook ok"]


@pytest.mark.parametrize("status", [300, 301, 307, 400, 410, 429, 500, 503])
def test_no_other_status_is_a_success_and_no_redirect_is_followed(
    receiver: FakeUpstream, status: int
) -> None:
    def reply(handler: fake_upstream.Handler) -> None:
        handler.send_response(status)
        handler.send_header("Location", f"{receiver.url}/elsewhere")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    receiver.next.append(reply)
    error = refusal(receiver.url)
    assert (error.kind, error.status) == ("status", status)
    assert [asked.path for asked in receiver.asked] == ["/"]


@pytest.mark.parametrize("reply", [fake_upstream.hangs, fake_upstream.whispers, fake_upstream.continues])
def test_an_attempt_without_a_response_has_a_time_limit(receiver: FakeUpstream, reply: Reply) -> None:
    receiver.next.append(reply)
    assert refusal(receiver.url, seconds=0.3).kind == "timeout"


@pytest.mark.parametrize("reply", [fake_upstream.drops, fake_upstream.boasts])
def test_a_broken_or_endless_head_is_a_failure(receiver: FakeUpstream, reply: Reply) -> None:
    receiver.next.append(reply)
    assert refusal(receiver.url).kind == "unreachable"


@pytest.mark.parametrize(
    "reply", [fake_upstream.drips, fake_upstream.trickles, fake_upstream.never_ends, fake_upstream.explodes]
)
def test_the_body_of_a_response_is_not_read(receiver: FakeUpstream, reply: Reply) -> None:
    receiver.next.append(reply)
    assert send(receiver.url) == ["job_webhook ok"]


def test_a_private_address_is_refused_before_a_connection(receiver: FakeUpstream) -> None:
    for lookup in (look_up, answers("::ffff:127.0.0.1"), answers("93.184.216.34", "127.0.0.1")):
        assert refusal(f"http://localhost:{receiver.port}/", lookup, allow_private=False).kind == "forbidden"
    assert receiver.asked == []


def test_a_metadata_service_is_refused_even_if_private_addresses_are_allowed() -> None:
    assert refusal("http://metadata.test/", answers("169.254.169.254")).kind == "forbidden"
    assert refusal("http://169.254.169.254/").kind == "forbidden"


def test_a_name_without_an_address_is_a_failure() -> None:
    def fails(host: str, port: int) -> list[str]:
        raise OSError

    assert refusal("http://receiver.test/", fails).kind == "unresolved"
    assert refusal("http://receiver.test/", answers()).kind == "unresolved"


def test_the_name_is_resolved_once_and_the_checked_address_is_used(receiver: FakeUpstream) -> None:
    """DNS rebinding: a second lookup would return another address."""
    given = iter((["127.0.0.1"], ["169.254.169.254"]))
    assert send(f"http://rebinding.test:{receiver.port}/", lambda *_: next(given)) == ["job_webhook ok"]
    assert receiver.asked[0].headers["host"] == f"rebinding.test:{receiver.port}"


def test_the_next_address_is_tried_if_one_refuses_connections(receiver: FakeUpstream) -> None:
    assert send(f"http://{NAME}:{receiver.port}/", answers("127.0.0.2", "::1", "127.0.0.1")) == [
        "job_webhook ok"
    ]
    assert len(receiver.asked) == 1


def test_neither_proxies_nor_netrc_are_used(
    receiver: FakeUpstream, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login user password word")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    send(receiver.url)
    assert receiver.asked[0].headers["authorization"] is None


def test_a_name_server_that_hangs_blocks_only_its_own_attempt(receiver: FakeUpstream) -> None:
    async def attempts() -> list[object]:
        def lookup(host: str, port: int) -> list[str]:
            if host == "hangs.test":
                time.sleep(0.5)  # a resolver blocks its thread
            return ["127.0.0.1"]

        resolver = Resolver(True, lookup)
        clients = UpstreamClients(lambda *_: None, resolver.resolve)
        sender = Sender(Signer("--flag", SecretStr(SECRET)), clients, 0.3)
        hosts = ["hangs.test"] * 8 + [NAME]
        try:
            return await asyncio.gather(
                *(sender.send(f"http://{host}:{receiver.port}/", "job-1", BODY) for host in hosts),
                return_exceptions=True,
            )
        finally:
            await clients.close()
            resolver.close()

    *hung, fine = asyncio.run(attempts())
    assert fine is None
    assert {getattr(error, "kind", None) for error in hung} == {"timeout"}


@pytest.fixture(scope="module")
def tls_receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeUpstream]:
    file = tmp_path_factory.mktemp("tls") / "receiver.pem"
    file.write_bytes(self_signed(NAME))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(file))
        fake = FakeUpstream(is_json, context)
        yield fake
        fake.close()


def test_certificates_are_verified_against_the_name(tls_receiver: FakeUpstream) -> None:
    assert send(f"https://{NAME}:{tls_receiver.port}/", answers("127.0.0.1")) == ["job_webhook ok"]
    for host in ("other.test", "127.0.0.1"):
        error = refusal(f"https://{host}:{tls_receiver.port}/", answers("127.0.0.1"))
        assert error.kind == "unreachable"
