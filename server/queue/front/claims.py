"""Which front runs the request with an idempotency key."""

import msgspec
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

from server.queue import names
from server.queue.broker import Broker
from server.queue.fleet import Fleet


class Claim(msgspec.Struct, frozen=True):
    """The front, and the digest of the request's body."""

    front: str
    digest: bytes


class Claims:
    """One value per idempotency key while its request runs. The claim of a front that is gone is free."""

    def __init__(self, broker: Broker, fleet: Fleet) -> None:
        self._broker = broker
        self._fleet = fleet

    async def start(self) -> None:
        """Call it once the broker is connected."""
        self._bucket: KeyValue = await self._broker.declare(names.CLAIMS)

    async def claim(self, key: str, digest: bytes) -> Claim | None:
        """Claim the key for this front. Returns the claim of another request if that runs."""
        held, revision = await self._held(key)
        if held is not None and not self._fleet.is_front_gone(held.front):
            return held
        own = Claim(self._fleet.id, digest)
        try:
            await self._bucket.update(key, msgspec.msgpack.encode(own), revision)
        except KeyWrongLastSequenceError:
            return (await self._held(key))[0]
        return None

    def is_own(self, claim: Claim) -> bool:
        """Whether this front has it."""
        return claim.front == self._fleet.id

    async def release(self, key: str) -> None:
        await self._bucket.delete(key)

    async def _held(self, key: str) -> tuple[Claim | None, int]:
        """The claim, and the revision of the value; 0 if there is none."""
        try:
            entry = await self._bucket.get(key)
        except KeyNotFoundError as error:
            return None, (error.entry.revision or 0) if error.entry else 0
        return msgspec.msgpack.decode(entry.value or b"", type=Claim), entry.revision or 0
