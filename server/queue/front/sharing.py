"""Idempotency keys and concurrency limits over all fronts."""

import asyncio
import hashlib
import logging
import time
from dataclasses import dataclass

import msgspec
import nats.errors

from engine.errors import DeadlineExceededError
from server.access.admission import concurrency_refusal
from server.access.api_keys import Caller
from server.generation.idempotency import Fingerprint, check_body
from server.generation.transcript import Transcript
from server.queue.connection.broker import Broker
from server.queue.front.answers import Answers
from server.queue.front.backlog import FleetBacklog
from server.queue.front.claims import Claim, Claims
from server.queue.front.seats import Seats
from server.queue.tasks import Tasks
from server.queue.wire import VersionError
from server.schemas.errors import from_engine, queue_unavailable

# How often a request looks whether another one with its key has been answered.
LOOK_SECONDS = 0.1
RETRY_SECONDS = 0.5
CLOSE_SECONDS = 2.0
FAILURES = (nats.errors.Error, OSError, TimeoutError, msgspec.MsgspecError, VersionError)
logger = logging.getLogger(__name__)


class FleetSharing:
    """Implements Sharing."""

    def __init__(
        self, broker: Broker, backlog: FleetBacklog, answers: Answers, claims: Claims, seats: Seats
    ) -> None:
        self._broker = broker
        self._backlog = backlog
        self._answers = answers
        self._claims = claims
        self._seats = seats
        self._tasks = Tasks()

    async def start(self) -> None:
        """Call it once the broker is connected."""
        for part in (self._answers, self._claims, self._seats):
            await part.start()

    async def close(self) -> None:
        """Finish what is being stored, for as long as the broker answers."""
        await self._tasks.wait(CLOSE_SECONDS)

    async def enter(
        self, caller: Caller, fingerprint: Fingerprint | None, deadline: float
    ) -> "FleetPermit | Transcript | None":
        """As of Sharing."""
        try:
            if fingerprint is None:
                return await self._seated(caller, None)
            return await self._claimed(caller, fingerprint, deadline)
        except FAILURES as error:
            self._broker.on_failure(error)
            raise queue_unavailable() from error

    async def _claimed(
        self, caller: Caller, fingerprint: Fingerprint, deadline: float
    ) -> "FleetPermit | Transcript | None":
        """Wait until the key is free or answered."""
        key = _key(fingerprint)
        while time.monotonic() < deadline:
            answer = await self._answers.get(key)
            if answer is not None:
                check_body(answer[0], fingerprint.digest)
                return answer[1]
            other = await self._claim(key, fingerprint)
            if other is None:
                return await self._seated(caller, fingerprint)
            check_body(other.digest, fingerprint.digest)
            await asyncio.sleep(LOOK_SECONDS)
            if self._claims.is_own(other):
                return None
        raise from_engine(DeadlineExceededError("the deadline passed"))

    async def _claim(self, key: str, fingerprint: Fingerprint) -> Claim | None:
        try:
            return await self._claims.claim(key, fingerprint.digest)
        except BaseException:
            FleetPermit(self, fingerprint, None).finish(None)
            raise

    async def _seated(self, caller: Caller, fingerprint: Fingerprint | None) -> "FleetPermit":
        """Take a seat if the key of the caller is limited. Raises ApiError 429."""
        permit = FleetPermit(self, fingerprint, None)
        try:
            if caller.max_concurrency is not None:
                in_flight = await self._seats.take(caller.name, caller.max_concurrency)
                if in_flight is not None:
                    wait = self._backlog.seconds("interactive")
                    raise concurrency_refusal(in_flight, caller.max_concurrency, wait)
                permit.seat = caller.name
        except BaseException:
            permit.finish(None)
            raise
        return permit

    def finish(self, permit: "FleetPermit", transcript: Transcript | None) -> None:
        if permit.fingerprint is not None or permit.seat is not None:
            self._tasks.spawn(self._finish(permit, transcript))

    async def _finish(self, permit: "FleetPermit", transcript: Transcript | None) -> None:
        """Try again until the broker has it."""
        while True:
            try:
                await self._give_back(permit, transcript)
                return
            except FAILURES as error:
                self._broker.on_failure(error)
                logger.warning("a finished request is not recorded yet: %s", type(error).__name__)
                await asyncio.sleep(RETRY_SECONDS)

    async def _give_back(self, permit: "FleetPermit", transcript: Transcript | None) -> None:
        """Store the answer before the claim is released, so that no other request runs again."""
        if permit.seat is not None:
            await self._seats.give(permit.seat)
            permit.seat = None
        if permit.fingerprint is not None:
            key = _key(permit.fingerprint)
            if transcript is not None:
                await self._answers.put(key, permit.fingerprint.digest, transcript)
            await self._claims.release(key)


@dataclass(eq=False, slots=True)
class FleetPermit:
    """Implements Permit: a claim of an idempotency key, and a seat of an API key."""

    sharing: FleetSharing
    fingerprint: Fingerprint | None
    seat: str | None

    def finish(self, transcript: Transcript | None) -> None:
        """As of Permit."""
        self.sharing.finish(self, transcript)


def _key(fingerprint: Fingerprint) -> str:
    scope = "\0".join(fingerprint.scope)
    return hashlib.sha256(scope.encode()).hexdigest()[:32]
