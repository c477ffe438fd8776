"""Finds requests that the queue has lost, or that other fronts have taken over."""

import asyncio
import contextlib
import heapq
import time
from collections.abc import Awaitable, Callable, Mapping, Set

import msgspec
import nats.errors
from nats.js.errors import NotFoundError

from server.generation.transcript import TakenOverError
from server.queue import names
from server.queue.connection.broker import Broker
from server.queue.fleet import Fleet
from server.queue.front.submission import Submission
from server.queue.wire import FAILURES, VersionError, Work, decode

# A request is looked for after so many beats without a sign of it.
AUDIT_BEATS = 4
# Requests that are looked for in a beat, unless one was lost.
AUDITED = 20


class Audit:
    """Looks in the work stream for requests that no worker announces, and calls `recover` with those that are
    not stored: a worker has dropped them, or the stream was deleted. Before that, it calls `give_up` with
    those whose ids `taken_over` returns."""

    def __init__(
        self,
        broker: Broker,
        fleet: Fleet,
        submissions: Mapping[str, Submission],
        recover: Callable[[Submission], Awaitable[None]],
        taken_over: Callable[[], Awaitable[Set[str]]],
        give_up: Callable[[Submission, Exception], None],
    ) -> None:
        self._broker = broker
        self._fleet = fleet
        self._submissions = submissions
        self._recover = recover
        self._taken_over = taken_over
        self._give_up = give_up
        self._is_any_lost = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def suspect_all(self) -> None:
        """Look for all requests at the next beat."""
        self._is_any_lost = True

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._fleet.beat_seconds)
            await self._broker.wait_up()
            with contextlib.suppress(*FAILURES):
                self._leave(await self._taken_over())
                for submission in self._due():
                    with contextlib.suppress(*FAILURES):
                        await self._look(submission)

    def _leave(self, request_ids: Set[str]) -> None:
        """To other fronts."""
        for submission in list(self._submissions.values()):
            in_flight = submission.in_flight
            if in_flight.request.request_id in request_ids and not in_flight.is_answered:
                self._give_up(submission, TakenOverError("another front runs the request"))

    def _due(self) -> list[Submission]:
        sent = [each for each in self._submissions.values() if each.is_in_queue]
        if self._is_any_lost:
            self._is_any_lost = False
            return sent
        held, before = self._fleet.held(), time.monotonic() - AUDIT_BEATS * self._fleet.beat_seconds
        due = (each for each in sent if each.seen < before and each.reply not in held)
        return heapq.nsmallest(AUDITED, due, key=lambda each: each.seen)

    async def _look(self, submission: Submission) -> None:
        sequence = submission.sequence
        if sequence is None or await self._is_stored(submission.reply, sequence):
            submission.seen = time.monotonic()
        elif submission.is_in_queue and submission.sequence == sequence:
            self._is_any_lost = True
            await self._recover(submission)

    async def _is_stored(self, reply: str, sequence: int) -> bool:
        """Whether the work stream has it."""
        try:
            found = await self._broker.jetstream.get_msg(names.WORK.name, sequence)
            return decode(found.data or b"", Work).reply == reply
        except (NotFoundError, VersionError, msgspec.MsgspecError):
            return False  # or the stream is a new one and this is another message
        except (nats.errors.Error, TimeoutError):
            return True  # or does not tell
