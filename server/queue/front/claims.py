"""Which front runs the request with an idempotency key."""

import contextlib

import msgspec
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

from server.queue import names
from server.queue.connection.broker import Broker
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
        self._own: dict[str, Claim] = {}

    async def start(self) -> None:
        """Call it once the broker is connected."""
        self._bucket: KeyValue = await self._broker.declare(names.CLAIMS)

    async def claim(self, key: str, digest: bytes) -> Claim | None:
        """Claim the key for this front. Returns the claim of another request if that runs.

        If it fails, the claim may be stored: release it.
        """
        if key in self._own:
            return self._own[key]
        self._own[key] = own = Claim(self._fleet.id, digest)
        other = await self._write(key, own)
        if other is not None:
            del self._own[key]
        return other

    async def _write(self, key: str, own: Claim) -> Claim | None:
        """Store the claim, unless another front has one. Returns that."""
        while True:
            held, revision = await self._held(key)
            if held is not None and not self._is_free(held):
                return held
            with contextlib.suppress(KeyWrongLastSequenceError):
                await self._bucket.update(key, msgspec.msgpack.encode(own), revision)
                return None

    async def renew(self, key: str) -> Claim | None:
        """Claim a key again if this front has lost it. Returns the claim of another request if that runs."""
        held, _ = await self._held(key)
        own = self._own.get(key)
        if own is None or (held is not None and self.is_own(held)):
            return None
        other = await self._write(key, own)
        if key not in self._own:  # released meanwhile
            await self.release(key)
        return other

    def _is_free(self, claim: Claim) -> bool:
        """Whether its front is gone, or is this one, which did not learn that the claim was stored."""
        return self.is_own(claim) or self._fleet.is_front_gone(claim.front)

    def is_own(self, claim: Claim) -> bool:
        """Whether this front has it."""
        return claim.front == self._fleet.id

    async def release(self, key: str) -> None:
        """Remove the claim of this front, if it is stored."""
        held, revision = await self._held(key)
        if held is not None and self.is_own(held):
            await self._remove(key, revision)
        self._own.pop(key, None)

    async def _remove(self, key: str, revision: int) -> None:
        """Without the marker that a deletion leaves. A later revision stays."""
        request = {"filter": f"$KV.{names.CLAIMS.name}.{key}", "seq": revision + 1}
        await self._broker.ask(f"$JS.API.STREAM.PURGE.KV_{names.CLAIMS.name}", request)

    async def _held(self, key: str) -> tuple[Claim | None, int]:
        """The claim, and the revision of the value; 0 if there is none."""
        try:
            entry = await self._bucket.get(key)
        except KeyNotFoundError as error:
            return None, (error.entry.revision or 0) if error.entry else 0
        return msgspec.msgpack.decode(entry.value or b"", type=Claim), entry.revision or 0
