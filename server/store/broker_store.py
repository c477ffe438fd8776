"""Files on the broker, for servers without another store."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Iterable

import nats.errors
from nats.js.errors import APIError, KeyWrongLastSequenceError, NotFoundError

from server.queue.connection.broker import Broker
from server.queue.names import Bucket, Stream
from server.store import names
from server.store.links import Links
from server.store.store import StoreError

STREAM = "FILES"
CHUNKS, TTL = "Chunks", "Nats-TTL"
HEADER_BYTES = 4096  # left of the broker's maximum for headers and the subject
SECRETS, SECRET = Bucket("secrets", ttl=0), "urls"
FAILURES = (nats.errors.Error, OSError, TimeoutError)
logger = logging.getLogger(__name__)


class BrokerStore:
    """Files in chunks that are messages of a stream; the broker deletes them after their time.

    Unlike in an object bucket of JetStream, a file whose first chunks have expired is missing at once.
    """

    sweep_seconds = 60.0

    def __init__(self, broker: Broker, links: Links, max_age: float, max_bytes: int) -> None:
        """`links` gets the secret of the fleet if it has none. `max_age` is in seconds."""
        self.stored_bytes = 0
        self._broker = broker
        self._links = links
        self._max_bytes = max_bytes
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
        size = self._broker.max_payload - HEADER_BYTES
        chunks = [data[start : start + size] for start in range(0, len(data), size)]
        headers = {CHUNKS: str(len(chunks)), TTL: str(max(1, names.expiry(name) - int(time.time())))}
        # The first chunk is stored last: a file that has it is complete.
        for index in reversed(range(len(chunks))):
            try:
                await self._broker.store(_subject(name, index), chunks[index], headers)
            except APIError as error:
                raise _failed("store an image", error) from None

    async def get(self, name: str) -> bytes | None:
        try:
            return await self._get(name)
        except FAILURES as error:
            self._broker.on_failure(error)
            raise _failed("read an image", error) from None

    async def delete(self, name: str) -> None:
        try:
            await self._broker.jetstream.purge_stream(STREAM, subject=f"files.{_token(name)}.>")
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

    async def _get(self, name: str) -> bytes | None:
        first = await self._chunk(name, 0)
        if first is None:
            return None
        count, data = first
        others = await asyncio.gather(*(self._chunk(name, index) for index in range(1, count)))
        return _joined(data, (chunk and chunk[1] for chunk in others))

    async def _chunk(self, name: str, index: int) -> tuple[int, bytes] | None:
        """The number of chunks, and one of them."""
        try:
            message = await self._broker.jetstream.get_last_msg(STREAM, _subject(name, index), direct=True)
        except NotFoundError:
            return None
        return int((message.headers or {})[CHUNKS]), message.data or b""


def _joined(first: bytes, others: Iterable[bytes | None]) -> bytes | None:
    chunks = [first]
    for chunk in others:
        if chunk is None:
            return None
        chunks.append(chunk)
    return b"".join(chunks)


def _subject(name: str, index: int) -> str:
    return f"files.{_token(name)}.{index}"


def _token(name: str) -> str:
    return name.replace(".", "_")


def _failed(action: str, error: Exception) -> StoreError:
    """Logs the reason."""
    logger.error("cannot %s: %s", action, str(error) or type(error).__name__)
    return StoreError()
