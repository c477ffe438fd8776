"""Files in chunks, which are messages of a stream."""

import asyncio
from collections.abc import Mapping

from nats.js.errors import NotFoundError

from server.queue.connection.broker import Broker

CHUNKS = "Chunks"
HEADER_BYTES = 4096  # left of the broker's maximum for headers and the subject


class ChunkedFiles:
    """The files of a stream below `prefix`.

    Unlike in an object bucket of JetStream, a file whose first chunks have expired is missing at once.
    """

    def __init__(self, broker: Broker, stream: str, prefix: str) -> None:
        self._broker = broker
        self._stream = stream
        self._prefix = prefix

    async def put(self, name: str, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Waits while the broker is away. `headers` are those of each chunk. Raises APIError."""
        size = self._broker.max_payload - HEADER_BYTES
        chunks = [data[start : start + size] for start in range(0, len(data), size)]
        counted = {CHUNKS: str(len(chunks)), **(headers or {})}
        # The first chunk is stored last: a file that has it is complete.
        for index in reversed(range(len(chunks))):
            await self._broker.store(self._subject(name, index), chunks[index], counted)

    async def get(self, name: str) -> bytes | None:
        """None if there is no such file."""
        first = await self._chunk(name, 0)
        if first is None:
            return None
        count, data = first
        others = await asyncio.gather(*(self._chunk(name, index) for index in range(1, count)))
        found = [data, *(chunk[1] for chunk in others if chunk)]
        return b"".join(found) if len(found) == count else None

    async def delete(self, name: str) -> None:
        await self._broker.jetstream.purge_stream(self._stream, subject=self._subject(name, ">"))

    async def _chunk(self, name: str, index: int) -> tuple[int, bytes] | None:
        """The number of chunks, and one of them."""
        try:
            message = await self._broker.jetstream.get_last_msg(
                self._stream, self._subject(name, index), direct=True
            )
        except NotFoundError:
            return None
        return int((message.headers or {})[CHUNKS]), message.data or b""

    def _subject(self, name: str, index: int | str) -> str:
        return f"{self._prefix}.{name.replace('.', '_')}.{index}"
