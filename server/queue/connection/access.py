"""How to reach the NATS servers: addresses, credentials and TLS."""

import contextlib
import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nats.aio.client import Client
from nats.errors import Error
from nats.js.errors import APIError, ServiceUnavailableError

from server.queue.connection.embedded import EmbeddedServer, embedded_server
from server.settings.config_error import ConfigError
from server.settings.queue_settings import EMBEDDED, QueueSettings, servers
from server.settings.secrets import read_secret

CREDENTIALS = b"-----BEGIN NATS USER JWT-----"
NKEY = r"SU[A-Z2-7]{56}"  # the seed of a user
COMPLETE = re.compile(
    CREDENTIALS + rb"\n\S+\n.*\n-+BEGIN USER NKEY SEED-+\n" + NKEY.encode() + rb"\n", re.DOTALL
)


class EncryptedClient(Client):
    """Sends nothing without TLS. `Client` sends credentials as text to a server that does not require it."""

    def _connect_command(self) -> bytes:
        if not self._server_info.get("tls_required"):
            raise Error("it does not require TLS, which the settings ask for")
        return super()._connect_command()


@dataclass(frozen=True, slots=True)
class Access:
    """The NATS servers, and the options of `nats.connect` that authenticate to them."""

    servers: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    replicas: int = 1

    @classmethod
    def of(cls, settings: QueueSettings) -> "Access":
        """Raises ConfigError."""
        options = _credentials(settings.queue_credentials_file) | _tls(settings)
        return cls(servers(settings.queue), options, settings.queue_replicas)

    @classmethod
    def embedded(cls, server: EmbeddedServer) -> "Access":
        return cls((server.url,), {"user": "ideoserve", "password": server.password})

    def client(self) -> Client:
        """A new one, not connected."""
        return EncryptedClient() if "tls" in self.options else Client()

    def __str__(self) -> str:
        return ",".join(self.servers)


@contextlib.contextmanager
def opened(settings: QueueSettings) -> Iterator[Access]:
    """Access to the queue, whose embedded server runs inside the block. Raises ConfigError."""
    if settings.queue != EMBEDDED or settings.queue_dir is None:
        yield Access.of(settings)
        return
    with embedded_server(settings.queue_dir) as server:
        yield Access.embedded(server)


def _credentials(file: Path | None) -> dict[str, Any]:
    secret = read_secret("--queue-credentials-file", file, None)
    if file is None or secret is None:
        return {}
    if CREDENTIALS in (content := file.read_bytes()):
        return _creds_file(file, content)
    text = secret.get_secret_value()
    user, separator, password = text.partition(":")
    if "\n" in text or not user:
        raise ConfigError(
            "--queue-credentials-file: neither a .creds file nor one line with USER:PASSWORD, a token or an "
            "nkey seed"
        )
    if separator:
        return {"user": user, "password": password}
    return {"nkeys_seed_str": text} if re.fullmatch(NKEY, text) else {"token": text}


def _creds_file(file: Path, content: bytes) -> dict[str, Any]:
    """The client reads it again at each connection, because the JWT may be replaced before it expires."""
    if not COMPLETE.search(content):
        raise ConfigError(
            "--queue-credentials-file: the .creds file lacks a JWT or an nkey seed, or has lines with CRLF"
        )
    return {"user_credentials": str(file)}


def _tls(settings: QueueSettings) -> dict[str, Any]:
    authority, chain = settings.queue_tls_ca_file, settings.queue_tls_certificate_file
    if not (authority or chain or "tls://" in (settings.queue or "")):
        return {}
    context = ssl.create_default_context()
    if authority:
        _load("--queue-tls-ca-file", lambda: context.load_verify_locations(authority))
    if chain:
        key = settings.queue_tls_key_file
        # Without a password, the key would be asked for on the terminal.
        _load("--queue-tls-certificate-file", lambda: context.load_cert_chain(chain, key, password=""))
    return {"tls": context}


def _load(flag: str, load: Callable[[], None]) -> None:
    try:
        load()
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(f"{flag}: {error.strerror if isinstance(error, OSError) else error}") from None


def failure(access: Access, error: Exception, problem: Exception | None) -> str:
    """What a failed connection means, in one line. `problem` is what the server reported meanwhile."""
    said = " ".join(filter(None, (str(error), str(problem or ""))))
    if "authorization" in said.lower():
        return f"--queue-credentials-file: {access} refuses the credentials"
    if "permissions violation" in said.lower():
        violation = said[said.lower().index("permissions violation") :]
        return f"--queue-credentials-file: {access} refuses this user: {violation}"
    if isinstance(error, ServiceUnavailableError):
        return f"--queue: {access} has no JetStream; start nats-server with -js"
    if isinstance(error, APIError):
        return f"--queue: {access}: {error.description}"
    reason = getattr(error, "strerror", None) or str(error) or str(problem or "no answer")
    # The server may end the connection before or after it says why.
    is_refused = any(text in reason for text in ("Connection lost", "ALERT", "reset by peer"))
    if "tls" in access.options and is_refused:
        reason += "; it may require a client certificate that it trusts: --queue-tls-certificate-file"
    return f"--queue: {access} cannot be reached: {reason}"
