"""Every kind of credentials, against a real nats-server that requires it."""

import base64
import json
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nkeys
import pytest

from server.queue.connection.access import Access
from server.queue.connection.check import check_access
from server.settings.settings import read_settings
from tests.server.queue.nats_server import NatsServer
from tests.server.queue.test_broker import JETSTREAM, refusal, start

StartNats = Callable[..., NatsServer]
REFUSED = "--queue-credentials-file: {} refuses the credentials"
UNLIMITED = dict.fromkeys(("subs", "data", "payload"), -1)
NO_JETSTREAM = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), 0)
ACCOUNT_LIMITS = UNLIMITED | dict.fromkeys(
    ("imports", "exports", "conn", "leaf", "mem_storage", "disk_storage", "streams", "consumer"), -1
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "credentials"


def accept(server: NatsServer, file: Path, content: str) -> None:
    file.write_text(content)
    flags = ("--queue", server.url, "--queue-credentials-file", str(file))
    check_access(Access.of(read_settings(["--model", "m", *flags])))


def refuse(server: NatsServer, file: Path, content: str) -> str:
    file.write_text(content)
    return refusal(server, "--queue-credentials-file", str(file))


def new_key(prefix: int = nkeys.PREFIX_BYTE_USER) -> Any:
    return nkeys.from_seed(bytearray(nkeys.encode_seed(secrets.token_bytes(32), prefix)))


def public(key: Any) -> str:
    name: str = key.public_key.decode()
    return name


def seed(key: Any) -> str:
    text: str = bytes(key.seed).decode()
    return text


def test_a_token(start_nats: StartNats, tmp_path: Path, file: Path) -> None:
    config = JETSTREAM.format(folder=tmp_path) + 'authorization { token: "a secret" }\n'
    server = start_nats(config)
    accept(server, file, "a secret\n")
    for wrong in ("another secret", "me:a secret", seed(new_key())):
        assert refuse(server, file, wrong) == REFUSED.format(server.url)
    ended = start("--queue", server.url, "--queue-credentials-file", str(file))
    assert (ended.returncode, ended.stderr) == (2, f"ideoserve: {REFUSED.format(server.url)}\n")


def test_an_nkey(start_nats: StartNats, tmp_path: Path, file: Path) -> None:
    key = new_key()
    users = f'authorization {{ users: [{{ nkey: "{public(key)}" }}] }}\n'
    server = start_nats(JETSTREAM.format(folder=tmp_path) + users)
    accept(server, file, seed(key) + "\n")
    for wrong in (seed(new_key()), seed(key)[:-1], "me:secret"):
        assert refuse(server, file, wrong) == REFUSED.format(server.url)


def test_a_creds_file(start_nats: StartNats, tmp_path: Path, file: Path) -> None:
    operator, user = new_key(nkeys.PREFIX_BYTE_OPERATOR), new_key()
    account, system, stranger = (new_key(nkeys.PREFIX_BYTE_ACCOUNT) for _ in range(3))
    accounts = [
        f'{public(account)}: "{jwt(operator, account, "account", limits=ACCOUNT_LIMITS)}"',
        f'{public(system)}: "{jwt(operator, system, "account", limits=ACCOUNT_LIMITS | NO_JETSTREAM)}"',
    ]
    config = (
        f'operator: "{jwt(operator, operator, "operator")}"\nsystem_account: {public(system)}\n'
        f"resolver: MEMORY\nresolver_preload {{ {', '.join(accounts)} }}\n"
    )
    server = start_nats(JETSTREAM.format(folder=tmp_path) + config)
    good = jwt(account, user, "user", **UNLIMITED)
    accept(server, file, creds(good, user))
    past = int(time.time()) - 60
    for wrong in (
        creds(good, new_key()),
        creds(jwt(stranger, user, "user", **UNLIMITED), user),
        creds(jwt(account, user, "user", expires=past, **UNLIMITED), user),
        seed(user),
    ):
        assert refuse(server, file, wrong) == REFUSED.format(server.url)
    whole = creds(good, user)
    for broken in (whole.partition("\n\n")[0], whole.replace(seed(user), "SU"), whole.replace("\n", "\r\n")):
        assert "--queue-credentials-file: the .creds file lacks" in refuse(server, file, broken)


def creds(token: str, key: Any) -> str:
    """As written by nsc."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
        "************************* IMPORTANT *************************\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed(key)}\n------END USER NKEY SEED------\n"
    )


def jwt(issuer: Any, subject: Any, kind: str, expires: int | None = None, **claims: object) -> str:
    """A claim of NATS that `issuer` signs."""
    body: dict[str, object] = {"iss": public(issuer), "sub": public(subject), "name": kind, "jti": "1"}
    body |= {"iat": 1, "nats": {"type": kind, "version": 2, **claims}}
    if expires is not None:
        body["exp"] = expires
    signed = b".".join(
        encoded(json.dumps(part).encode()) for part in ({"typ": "JWT", "alg": "ed25519-nkey"}, body)
    )
    return (signed + b"." + encoded(issuer.sign(signed))).decode()


def encoded(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
