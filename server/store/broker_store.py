"""Files on the broker, for servers without another store."""

import contextlib
import logging
import secrets

import nats.errors
from nats.js.errors import APIError, KeyWrongLastSequenceError

from server.queue.connection.broker import Broker
from server.queue.files.chunks import ChunkedFiles
from server.queue.names import Bucket, Stream
from server.store import names
from server.store.links import Links
from server.store.store import StoreError

STREAM = "FILES"
TTL = "Nats-TTL"
SECRETS, SECRET = Bucket("secrets", ttl=0), "urls"
FAILURES = (nats.errors.Error, OSError, TimeoutError)
logger = logging.getLogger(__name__)


class BrokerStore:
    """Files in chunks; the broker deletes them after their time."""

    sweep_seconds = 60.0

    def __init__(self, broker: Broker, links: Links, max_age: float, max_bytes: int) -> None:
        """`links` gets the secret of the fleet if it has none. `max_age` is in seconds."""
        self.stored_bytes = 0
        self._broker = broker
        self._links = links
        self._max_bytes = max_bytes
        self._chunks = ChunkedFiles(broker, STREAM, "files")
        self._stream = Stream(STREAM, ("files.>",), max_age=max_age, max_per_subject=1, can_expire=True)

    @property
    def is_full(self) -> bool:
        return self.stored_bytes >= self._max_bytes

    async def start(self) -> None:
        await self._broker.declare_stream(self._stream)
        if self._links.end_with_process:
            self._links.use(await self._shared_secret())

    async def _shared_secret(self) -> bytes:
        """That of the first server."""
        bucket = await self._broker.declare(SECRETS)
        with contextlib.suppress(KeyWrongLastSequenceError):
            await bucket.create(SECRET, secrets.token_bytes(32))
        return (await bucket.get(SECRET)).value or b""

    async def put(self, name: str, data: bytes) -> None:
        """Waits while the broker is away."""
        headers = {TTL: str(max(1, names.expiry(name) - int(self._links.now())))}
        try:
            await self._chunks.put(name, data, headers)
        except APIError as error:
            raise _failed("store an image", error) from None

    async def get(self, name: str) -> bytes | None:
        try:
            return await self._chunks.get(name)
        except FAILURES as error:
            self._broker.on_failure(error)
            raise _failed("read an image", error) from None

    async def delete(self, name: str) -> None:
        try:
            await self._chunks.delete(name)
        except FAILURES as error:
            raise _failed("delete an image", error) from None

    async def url(self, name: str, expires: int) -> str:
        return self._links.path(name, expires)

    async def sweep(self, now: float) -> None:
        """The broker deletes expired files itself."""
        try:
            self.stored_bytes = (await self._broker.jetstream.stream_info(STREAM)).state.bytes
        except FAILURES as error:
            raise _failed("look at the stored images", error) from None


def _failed(action: str, error: Exception) -> StoreError:
    """Logs the reason."""
    logger.error("cannot %s: %s", action, str(error) or type(error).__name__)
    return StoreError()
