"""The connection to a real nats-server, and how a server starts with it."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from server.queue import names
from server.queue.connection import check
from server.queue.connection.access import Access
from server.queue.connection.broker import Broker
from server.queue.connection.check import check_access
from server.queue.connection.embedded import EmbeddedServer
from server.queue.names import STREAMS
from server.queue.worker import pull
from server.settings.config_error import ConfigError
from server.settings.settings import Settings, read_settings
from tests.server.certificates import self_signed
from tests.server.forked_program import run_module
from tests.server.process import HANG, REPOSITORY, until
from tests.server.queue.nats_server import NatsServer

StartNats = Callable[..., NatsServer]
# The name of a folder with characters that mean something in the configuration of nats-server.
ODD = "a 'queue' of \"$HOME\" {ü} #1 \\"
JETSTREAM = 'jetstream {{ store_dir: "{folder}" }}\n'


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--role", "boss"), "--role: Input should be 'all', 'front' or 'worker'"),
        (("--role", "front"), "--role: `front` needs queue"),
        (
            ("--role", "worker", "--queue", "embedded", "--queue-dir", "d"),
            "--role: `worker` needs the URL of",
        ),
        (("--queue", "embedded"), "--queue-dir: required if queue is `embedded`"),
        (("--queue-dir", "d"), "--queue-dir: needs queue `embedded`"),
        (("--queue", "amqp://host"), "--queue: amqp://host is not `embedded`, nats://HOST[:PORT] or tls://"),
        (("--queue", "nats://a,b"), "--queue: b is not `embedded`"),
        *(
            (("--queue", url), f"--queue: {url} is not `embedded`")
            for url in (
                "nats://a:99999",
                "nats://a:0",
                "nats://a:x",
                "nats://:4222",
                "nats://[::1",
                "nats://a:-1",
            )
        ),
        (("--queue", "nats://me:secret@a"), "--queue: credentials go in queue_credentials_file"),
        (("--queue-credentials-file", "f"), "--queue-credentials-file: needs queue with the URL"),
        (("--queue", "nats://a", "--queue-tls-key-file", "f"), "--queue-tls-key-file: needs queue_tls_cert"),
        (("--queue", "nats://a", "--queue-replicas", "6"), "--queue-replicas: Input should be less than or"),
    ],
)
def test_wrong_settings_are_one_line(
    flags: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        read_settings(["--model", "m", *flags])
    written = capsys.readouterr().err
    assert end.value.code == 2
    assert written.startswith(f"ideoserve: {said}")
    assert written.count("\n") == 1


def start(*flags: str) -> "subprocess.CompletedProcess[str]":
    return run_module("server", "--model", "models/demo", "--port", "0", *flags)


def test_an_unreachable_queue_ends_the_start_with_one_line() -> None:
    done = start("--queue", "nats://127.0.0.1:1")
    line = "ideoserve: --queue: nats://127.0.0.1:1 cannot be reached: "
    assert (done.returncode, done.stderr[: len(line)], done.stderr.count("\n")) == (2, line, 1)


def refusal(server: NatsServer, *flags: str) -> str:
    settings = read_settings(["--model", "m", "--queue", server.url, *flags])
    with pytest.raises(ConfigError) as refused:
        check_access(Access.of(settings))
    message = str(refused.value)
    assert "\n" not in message
    assert "secret" not in message
    return message


def test_a_broker_without_jetstream_is_named(start_nats: StartNats) -> None:
    assert "has no JetStream; start nats-server with -js" in refusal(start_nats("max_payload: 1MB\n"))


def test_a_broker_of_small_messages_is_named(start_nats: StartNats, tmp_path: Path) -> None:
    config = JETSTREAM.format(folder=tmp_path) + "max_payload: 64KB\n"
    assert "max_payload is 65536 bytes, below 1048576" in refusal(start_nats(config))


def test_credentials_are_checked(start_nats: StartNats, tmp_path: Path) -> None:
    users = (
        '{user: "good", password: "secret"}, '
        '{user: "weak", password: "secret", permissions: {publish: ["x"], subscribe: [">"]}}'
    )
    config = JETSTREAM.format(folder=tmp_path) + f"authorization {{ users: [{users}] }}\n"
    server, file = start_nats(config), tmp_path / "credentials"
    assert "refuses the credentials" in refusal(server)
    flags = ("--queue-credentials-file", str(file))
    assert "the file cannot be read" in refusal(server, *flags)
    for neither in ("good:secret\nweak:secret", ":secret"):
        file.write_text(neither)
        assert "neither a .creds file nor one line with USER:PASSWORD" in refusal(server, *flags)
    file.write_text("good:not the secret\n")
    assert "refuses the credentials" in refusal(server, *flags)
    file.write_text("weak:secret\n")
    assert "refuses this user: permissions violation for publish to" in refusal(server, *flags).lower()
    file.write_text("good:secret\n")
    check_access(Access.of(read_settings(["--model", "m", "--queue", server.url, *flags])))


def test_a_bad_certificate_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    for content in (None, "no certificate"):
        if content:
            file.write_text(content)
        settings = Settings(model="m", queue="tls://127.0.0.1", queue_tls_ca_file=file)
        with pytest.raises(ConfigError, match="--queue-tls-ca-file: "):
            Access.of(settings)


def test_a_certificate_must_be_trusted(
    start_nats: StartNats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "CHECK_SECONDS", 2.0)
    certificate = tmp_path / "certificate.pem"
    certificate.write_bytes(self_signed("localhost"))
    tls = f'tls {{ cert_file: "{certificate}", key_file: "{certificate}" }}\n'
    server = start_nats(JETSTREAM.format(folder=tmp_path) + tls)
    server.url = f"nats://localhost:{server.port}"
    assert "its certificate may not be trusted: --queue-tls-ca-file" in refusal(server)
    flags = ("--queue-tls-ca-file", str(certificate))
    check_access(Access.of(read_settings(["--model", "m", "--queue", server.url, *flags])))


def test_a_broker_that_requires_a_client_certificate_says_so(start_nats: StartNats, tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.pem" for name in ("localhost", "client", "stranger")}
    for name, file in files.items():
        file.write_bytes(self_signed(name))
    own = f'cert_file: "{files["localhost"]}", key_file: "{files["localhost"]}"'
    tls = f'tls {{ {own}, ca_file: "{files["client"]}", verify: true }}\n'
    server = start_nats(JETSTREAM.format(folder=tmp_path) + tls)
    server.url = f"tls://localhost:{server.port}"
    flags = ("--queue-tls-ca-file", str(files["localhost"]))
    shown = ("--queue-tls-certificate-file", str(files["stranger"]))
    for refused in (flags, (*flags, *shown)):
        said = "it may require a client certificate that it trusts: --queue-tls-certificate-file"
        assert said in refusal(server, *refused)
    shown = ("--queue-tls-certificate-file", str(files["client"]))
    check_access(Access.of(read_settings(["--model", "m", "--queue", server.url, *flags, *shown])))


def test_streams_are_declared_again_and_updated(start_nats: StartNats) -> None:
    access = Access((start_nats().url,))

    async def change() -> None:
        broker = Broker(access)
        await broker.connect()
        for stream in STREAMS:
            config = (await broker.jetstream.stream_info(stream.name)).config
            await broker.jetstream.update_stream(config, max_age=999)
        await broker.close()

    check_access(access)
    check_access(access)
    asyncio.run(change())
    check_access(access)

    async def ages() -> list[float]:
        broker = Broker(access)
        await broker.connect()
        found = [await broker.jetstream.stream_info(stream.name) for stream in STREAMS]
        await broker.close()
        return [info.config.max_age or 0 for info in found]

    assert asyncio.run(ages()) == [stream.max_age for stream in STREAMS]


def test_a_message_is_stored_once_the_broker_is_back(start_nats: StartNats) -> None:
    server = start_nats()

    async def outage() -> None:
        broker, restored = Broker(Access((server.url,))), asyncio.Event()

        async def on_reconnect() -> None:
            restored.set()

        await broker.connect()
        broker.on_reconnect(on_reconnect)
        await broker.store("results.before", b"1")
        server.kill()
        stored = asyncio.create_task(broker.store("results.after", b"2"))
        await asyncio.wait({stored}, timeout=0.1)
        assert not broker.is_up
        assert not stored.done()
        server.start()
        async with asyncio.timeout(HANG):
            assert (await stored).seq >= 2
            await restored.wait()
        assert broker.is_up
        assert (await broker.jetstream.get_last_msg("RESULTS", "results.before")).data == b"1"
        await broker.close()

    asyncio.run(outage())


def test_the_embedded_server_restarts_and_keeps_its_data(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / ODD)

    async def use() -> None:
        broker = Broker(Access.embedded(server))
        await broker.connect()
        await broker.store("results.before", b"1")
        assert server.pid
        os.kill(server.pid, signal.SIGKILL)
        async with asyncio.timeout(HANG):
            await broker.store("results.after", b"2")
            assert (await broker.jetstream.get_last_msg("RESULTS", "results.before")).data == b"1"
        await broker.close()

    try:
        asyncio.run(use())
        with pytest.raises(ConfigError, match="another server uses this folder"):
            EmbeddedServer(tmp_path / ODD)
        with pytest.raises(ConfigError, match="refuses the credentials"):
            check_access(Access((server.url,)))
    finally:
        server.close()


def test_the_embedded_server_dies_with_its_parent(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; "
        "from server.queue.connection.embedded import EmbeddedServer; "
        "print(EmbeddedServer(Path(sys.argv[1])).pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout
    child = Path(f"/proc/{parent.stdout.readline().strip()}")
    assert child.exists()
    parent.kill()
    parent.wait()
    until(lambda: not child.exists() or "Z (zombie)" in (child / "status").read_text())


def test_the_embedded_server_is_reported_if_it_cannot_start(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigError, match=r"--queue-dir: .*: (Not a directory|File exists)"):
        EmbeddedServer(file)


def test_without_a_queue_nothing_of_it_is_imported() -> None:
    script = (
        "import sys, server.__main__, server.app; "
        "print({name.split('.')[0] for name in sys.modules} & {'nats', 'msgspec'})"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_a_pull_follows_one_that_was_cancelled_at_once(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull, "_GRACE_SECONDS", 10 * HANG)

    async def cancel_and_pull() -> None:
        broker = Broker(Access((nats_server.url,)))
        await broker.connect()
        pulls = pull.Pull(broker, names.work("pulls", "batch"), "pulls-batch", 6, lambda message: None)
        await pulls.start()
        for _ in range(10):
            waiting = asyncio.create_task(pulls.next(0, 60))
            await asyncio.sleep(0)
            waiting.cancel()
            async with asyncio.timeout(HANG):
                assert await pulls.next(0, 0) is None
        await broker.close()

    asyncio.run(cancel_and_pull())


def test_a_pull_knows_the_age_of_the_oldest_message(nats_server: NatsServer) -> None:
    async def look() -> float:
        broker = Broker(Access((nats_server.url,)))
        await broker.connect()
        subject = names.work("ages", "batch")
        pulls = pull.Pull(broker, subject, "ages-batch", 6, lambda message: None)
        await pulls.start()
        await pulls.refresh()
        assert (pulls.waiting, pulls.oldest_seconds) == (0, 0.0)
        for _ in range(2):
            await broker.store(subject, b"1")
        await pulls.next(0, 1)
        await asyncio.sleep(0.05)  # the age to be seen
        await pulls.refresh()
        assert pulls.waiting == 1
        await broker.purge(names.WORK, subject)
        await broker.close()
        return pulls.oldest_seconds

    assert asyncio.run(look()) >= 0.05


@pytest.mark.parametrize("length", [64, 65, 300])
def test_a_model_id_of_any_length_is_a_consumer(nats_server: NatsServer, length: int) -> None:
    async def use() -> None:
        broker = Broker(Access((nats_server.url,)))
        await broker.connect()
        model = "m" * length
        subject, consumer = names.work(model, "batch"), names.consumer(model, "batch")
        await pull.Pull(broker, subject, consumer, 6, lambda message: None).start()
        await broker.jetstream.delete_consumer(names.WORK.name, consumer)
        await broker.close()

    asyncio.run(use())


@pytest.mark.parametrize("is_by_address", [True, False])
def test_nothing_is_sent_to_a_server_without_tls(tmp_path: Path, is_by_address: bool) -> None:
    """If the settings ask for TLS: with the address, or with a certificate."""
    received = bytearray()
    file = tmp_path / "ca.pem"
    file.write_bytes(self_signed("localhost"))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b'INFO {"server_id":"a","max_payload":1048576,"headers":true}\r\n')
            while data := connection.recv(1024):
                received.extend(data)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        queue = ("--queue", f"tls://{address}" if is_by_address else f"nats://{address}")
        flags = () if is_by_address else ("--queue-tls-ca-file", str(file))
        with pytest.raises(ConfigError, match="cannot be reached: it does not require TLS"):
            check_access(Access.of(read_settings(["--model", "m", *queue, *flags])))
        thread.join(HANG)
    assert received == b""


def test_too_little_storage_ends_the_start_with_one_line(start_nats: StartNats, tmp_path: Path) -> None:
    server = start_nats(f'jetstream {{ store_dir: "{tmp_path}", max_file: 100M }}\n')
    done = start("--queue", server.url, "--role", "front")
    line = "ideoserve: --idempotency-bytes: 268435456: insufficient storage"
    assert (done.returncode, done.stderr[: len(line)], done.stderr.count("\n")) == (2, line, 1)
