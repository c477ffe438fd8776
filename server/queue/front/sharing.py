"""Idempotency keys and concurrency limits over all fronts."""

import asyncio
import hashlib
import logging
import time
from dataclasses import dataclass

from engine.errors import DeadlineExceededError
from server.access.admission import concurrency_refusal
from server.access.api_keys import Caller
from server.generation.idempotency import Fingerprint, check_body
from server.generation.transcript import AnsweredError, Transcript
from server.queue.connection.broker import Broker
from server.queue.fleet import Fleet
from server.queue.front.answers import Answers
from server.queue.front.backlog import FleetBacklog
from server.queue.front.claims import Claim, Claims
from server.queue.front.seats import Seats
from server.queue.tasks import Tasks
from server.queue.wire import FAILURES
from server.schemas.errors import from_engine, queue_unavailable

# How often a request looks whether another one with its key has been answered.
LOOK_SECONDS = 0.1
RETRY_SECONDS = 0.5
CLOSE_SECONDS = 2.0
logger = logging.getLogger(__name__)


class FleetSharing:
    """Implements Sharing."""

    def __init__(
        self,
        broker: Broker,
        fleet: Fleet,
        backlog: FleetBacklog,
        answers: Answers,
        claims: Claims,
        seats: Seats,
    ) -> None:
        self._broker = broker
        self._fleet = fleet
        self._backlog = backlog
        self._answers = answers
        self._claims = claims
        self._seats = seats
        self._permits: dict[str, FleetPermit] = {}  # with claims, by request id
        self._tasks = Tasks()

    async def start(self) -> None:
        """Call it once the broker is connected."""
        for part in (self._answers, self._claims, self._seats):
            await part.start()

    async def close(self) -> None:
        """Finish what is being stored, for as long as the broker answers."""
        await self._tasks.wait(CLOSE_SECONDS)

    async def enter(
        self, request_id: str, caller: Caller, fingerprint: Fingerprint | None, deadline: float
    ) -> "FleetPermit | Transcript | None":
        """As of Sharing."""
        permit = FleetPermit(self, request_id, fingerprint)
        try:
            if fingerprint is None:
                return await self._seated(caller, permit)
            return await self._claimed(caller, permit, fingerprint, deadline)
        except FAILURES as error:
            self._broker.on_failure(error)
            raise queue_unavailable() from error

    async def _claimed(
        self, caller: Caller, permit: "FleetPermit", fingerprint: Fingerprint, deadline: float
    ) -> "FleetPermit | Transcript | None":
        """Wait until the key is free or answered."""
        key = _key(fingerprint)
        while time.monotonic() < deadline:
            answer = await self._answer(key, fingerprint)
            if answer is not None:
                return answer
            other = await self._claim(key, permit, fingerprint)
            if other is None:
                return await self._first(key, permit, fingerprint) or await self._seated(caller, permit)
            check_body(other.digest, fingerprint.digest)
            await asyncio.sleep(LOOK_SECONDS)
            if self._claims.is_own(other):
                return None
        raise from_engine(DeadlineExceededError("the deadline passed"))

    async def _answer(self, key: str, fingerprint: Fingerprint) -> Transcript | None:
        """Raises ApiError 422."""
        answer = await self._answers.get(key)
        if answer is None:
            return None
        check_body(answer[0], fingerprint.digest)
        return answer[1]

    async def _claim(self, key: str, permit: "FleetPermit", fingerprint: Fingerprint) -> Claim | None:
        permit.confirmed = time.monotonic()
        try:
            other = await self._claims.claim(key, fingerprint.digest)
        except BaseException:
            permit.finish(None)
            raise
        if other is None:
            self._permits[permit.request_id] = permit
        return other

    async def _first(self, key: str, permit: "FleetPermit", fingerprint: Fingerprint) -> Transcript | None:
        """The answer of a front that released the key just before it was claimed here."""
        try:
            answer = await self._answer(key, fingerprint)
        except BaseException:
            permit.finish(None)
            raise
        if answer is not None:
            permit.finish(None)
        return answer

    async def _seated(self, caller: Caller, permit: "FleetPermit") -> "FleetPermit":
        """Take a seat if the key of the caller is limited. Raises ApiError 429."""
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

    async def taken_over(self) -> set[str]:
        """The ids of requests of this front that another one has claimed or answered. Asks the broker only
        after this front was silent."""
        return {
            request_id
            for request_id, permit in list(self._permits.items())
            if await self._other(permit) is not None
        }

    async def confirm(self, permit: "FleetPermit") -> None:
        """As of Permit."""
        while (other := await self._other_at_last(permit)) is not None:
            digest = other.digest if isinstance(other, Claim) else other[0]
            assert permit.fingerprint is not None
            check_body(digest, permit.fingerprint.digest)
            if not isinstance(other, Claim):
                raise AnsweredError(other[1])
            await asyncio.sleep(LOOK_SECONDS)

    async def _other_at_last(self, permit: "FleetPermit") -> Claim | tuple[bytes, Transcript] | None:
        """As `_other`, once the broker answers."""
        while True:
            try:
                return await self._other(permit)
            except FAILURES as error:
                self._broker.on_failure(error)
                await asyncio.sleep(RETRY_SECONDS)

    async def _other(self, permit: "FleetPermit") -> Claim | tuple[bytes, Transcript] | None:
        """The claim or answer of another front; None if this front still has the claim, or has it again."""
        if permit.fingerprint is None or not self._fleet.was_silent(permit.confirmed):
            return None
        asked, key = time.monotonic(), _key(permit.fingerprint)
        other = await self._claims.renew(key) or await self._answers.get(key)
        if other is None:
            permit.confirmed = asked
        return other

    def finish(self, permit: "FleetPermit", transcript: Transcript | None) -> None:
        self._permits.pop(permit.request_id, None)
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
    """Implements Permit: a claim of an idempotency key, and a seat of an API key. The claim was `confirmed`
    last at this time of `time.monotonic()`."""

    sharing: FleetSharing
    request_id: str
    fingerprint: Fingerprint | None
    seat: str | None = None
    confirmed: float = 0.0

    async def confirm(self) -> None:
        """As of Permit."""
        await self.sharing.confirm(self)

    def finish(self, transcript: Transcript | None) -> None:
        """As of Permit."""
        self.sharing.finish(self, transcript)


def _key(fingerprint: Fingerprint) -> str:
    scope = "\0".join(fingerprint.scope)
    return hashlib.sha256(scope.encode()).hexdigest()[:32]
