"""The webhooks of a server with a queue: what jobs use."""

import asyncio
import contextlib

from pydantic import SecretStr

from server.queue.connection.broker import Broker
from server.settings.config_error import needed
from server.settings.secrets import read_secret
from server.settings.settings import Settings
from server.upstream.client import Listener, UpstreamClients
from server.webhooks.addresses import Resolver
from server.webhooks.deliveries import Deliveries, OnDeadLetter
from server.webhooks.hosts import AllowedHosts
from server.webhooks.sender import Sender
from server.webhooks.signature import Signer

SECRET_FLAG = "--webhook-secret-file"


class Webhooks:
    """`listener` is called after each attempt, `on_dead_letter` for each message that is given up."""

    def __init__(
        self, settings: Settings, broker: Broker, listener: Listener, on_dead_letter: OnDeadLetter
    ) -> None:
        """Raises ConfigError."""
        self._hosts = AllowedHosts(settings.webhook_host_list, settings.webhook_allow_private)
        self._resolver = Resolver(settings.webhook_allow_private)
        self._clients = UpstreamClients(listener, self._resolver.resolve)
        sender = Sender(_signer(settings), self._clients)
        self._deliveries = Deliveries(broker, self._hosts, sender, on_dead_letter)
        self._task: asyncio.Task[None] | None = None

    def check(self, url: str) -> str:
        """Return the URL in the form that is sent to. Raises ApiError 400 about `webhook`."""
        return self._hosts.check(url)

    async def enqueue(self, message_id: str, url: str, payload: bytes) -> None:
        """Store a message, which is delivered at least once; waits while the broker is away.

        A second message with the same id within two minutes is ignored.
        """
        await self._deliveries.enqueue(message_id, url, payload)

    def start(self) -> None:
        """Deliver the messages of all servers, if this one may; call it once the broker is connected."""
        if self._hosts:
            self._task = asyncio.create_task(self._deliveries.run())

    async def close(self) -> None:
        """Attempts that run are cancelled and made again by another front, or after a restart."""
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._clients.close()
        self._resolver.close()


def _signer(settings: Settings) -> Signer:
    secret = read_secret(SECRET_FLAG, settings.webhook_secret_file, settings.webhook_secret)
    if settings.webhook_host_list:
        secret = needed(SECRET_FLAG, secret)
    return Signer(SECRET_FLAG, secret or SecretStr(""))
