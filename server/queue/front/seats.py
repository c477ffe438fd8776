"""Requests in flight of an API key over all fronts."""

import asyncio
from collections import Counter, defaultdict

import msgspec
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

from server.queue import names
from server.queue.connection.broker import Broker
from server.queue.fleet import Fleet


class Seats:
    """One value per key: requests by front. Each front writes its own number, guarded by the revision of the
    value, so that the limit holds exactly. Fronts that are gone do not count."""

    def __init__(self, broker: Broker, fleet: Fleet) -> None:
        self._broker = broker
        self._fleet = fleet
        self._own: Counter[str] = Counter()
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def start(self) -> None:
        """Call it once the broker is connected."""
        self._bucket: KeyValue = await self._broker.declare(names.SEATS)

    async def take(self, key: str, limit: int) -> int | None:
        """Count a request of the key. Returns the number of requests in flight if the limit is reached."""
        async with self._locks[key]:
            while True:
                others, revision = await self._others(key)
                if others.total() + self._own[key] >= limit:
                    return others.total() + self._own[key]
                if await self._write(key, others, self._own[key] + 1, revision):
                    self._own[key] += 1
                    return None

    async def give(self, key: str) -> None:
        """A request of the key has ended. If the broker fails, nothing is counted."""
        async with self._locks[key]:
            is_written = False
            while not is_written:
                others, revision = await self._others(key)
                is_written = await self._write(key, others, self._own[key] - 1, revision)
            self._own[key] -= 1

    async def _others(self, key: str) -> tuple[Counter[str], int]:
        """Requests of the other fronts, and the revision of the value; 0 if there is none."""
        try:
            entry = await self._bucket.get(names.token(key))
        except KeyNotFoundError as error:
            return Counter(), error.entry.revision if error.entry else 0
        counts = msgspec.json.decode(entry.value or b"{}", type=dict[str, int])
        own = self._fleet.id
        alive = {id_: n for id_, n in counts.items() if id_ != own and not self._fleet.is_front_gone(id_)}
        return Counter(alive), entry.revision or 0

    async def _write(self, key: str, others: Counter[str], own: int, revision: int) -> bool:
        """Returns whether nobody has written since the revision."""
        counts = dict(others) | ({self._fleet.id: own} if own else {})
        try:
            await self._bucket.update(names.token(key), msgspec.json.encode(counts), revision)
        except KeyWrongLastSequenceError:
            return False
        return True
