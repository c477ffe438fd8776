"""Files on the broker, for servers without another store."""

import asyncio
from collections.abc import Iterable

from nats.js.errors import NotFoundError

from server.queue.broker import Broker
from server.queue.names import Stream

STREAM = "FILES"
CHUNKS = "Chunks"
HEADER_BYTES = 4096  # left of the broker's maximum for headers and the subject


class BrokerStore:
    """Files in chunks that are messages of a stream; the broker deletes them after their time.

    Unlike in an object bucket of JetStream, a file whose first chunks have expired is missing at once.
    """

    def __init__(self, broker: Broker, ttl: float) -> None:
        self._broker = broker
        self.stream = Stream(STREAM, ("files.>",), max_age=ttl, max_per_subject=1)

    async def start(self) -> None:
        await self._broker.declare_stream(self.stream)

    async def put(self, name: str, data: bytes) -> None:
        """Waits while the broker is away."""
        size = self._broker.max_payload - HEADER_BYTES
        chunks = [data[start : start + size] for start in range(0, len(data), size)]
        # The first chunk is stored last: a file that has it is complete.
        for index in reversed(range(len(chunks))):
            await self._broker.store(_subject(name, index), chunks[index], {CHUNKS: str(len(chunks))})

    async def get(self, name: str) -> bytes | None:
        first = await self._chunk(name, 0)
        if first is None:
            return None
        count, data = first
        others = await asyncio.gather(*(self._chunk(name, index) for index in range(1, count)))
        return _joined(data, (chunk and chunk[1] for chunk in others))

    async def delete(self, name: str) -> None:
        await self._broker.jetstream.purge_stream(STREAM, subject=f"files.{_token(name)}.>")

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
