"""Submits requests to the queue and receives their results."""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Set

import msgspec
import nats.errors
from nats.aio.msg import Msg
from nats.js.errors import APIError, NotFoundError

from engine.client.in_flight import InFlightRequest
from engine.errors import GenerationError, VersionMismatchError
from server.queue import names
from server.queue.connection.broker import Broker
from server.queue.fleet import Fleet
from server.queue.front.audit import Audit
from server.queue.front.submission import Submission
from server.queue.front.uploads import Uploads
from server.queue.tasks import Tasks
from server.queue.wire import Done, Part, Progress, Promotion, VersionError, Work, decode, encode

# Results of requests that are over are removed from the stream at most this often.
CLEAN_SECONDS = 0.5
CLOSE_SECONDS = 2.0
# Times that a request is submitted to the queue.
MAX_PUBLICATIONS = 10

logger = logging.getLogger(__name__)


class Submissions:
    """The requests of this front that are in the queue or on a worker."""

    def __init__(
        self, broker: Broker, model_id: str, fleet: Fleet, taken_over: Callable[[], Awaitable[Set[str]]]
    ) -> None:
        """`taken_over` returns the ids of requests that other fronts run."""
        self._broker = broker
        self._model_id = model_id
        self._fleet = fleet
        self._front = fleet.id
        self._open: dict[str, Submission] = {}
        self._audit = Audit(broker, fleet, self._open, self._recover, taken_over, self._give_up)
        self._over: set[str] = set()
        self._uploads = Uploads(broker, fleet.id)
        self._tasks = Tasks()
        self._cleaning: asyncio.Task[None] | None = None
        broker.on_reconnect(self._on_reconnect)

    async def start(self) -> None:
        """Call it once the broker is connected."""
        client = self._broker.client
        results = names.results(self._front, "*")
        # Without limits: a result that is dropped would delay its request.
        for kind in (names.done(results), names.part(results, "*", "*", "*")):
            await client.subscribe(kind, cb=self._on_message, pending_msgs_limit=0, pending_bytes_limit=0)
        await client.subscribe(names.progress(results), cb=self._on_progress)
        await client.subscribe(names.gone(self._front), cb=self._on_taken_for_dead)
        self._audit.start()

    async def close(self) -> None:
        """Finish aborts and removals, for as long as the broker answers."""
        self._audit.close()
        await self._tasks.wait(CLOSE_SECONDS if self._broker.is_up else 0)
        if self._cleaning is not None:
            self._cleaning.cancel()
        if self._broker.is_up:
            await self._remove_results()

    def submit(self, in_flight: InFlightRequest) -> Submission:
        """Send a request. Its outputs arrive at `in_flight`; `leave` it in the end."""
        name = f"{names.token(in_flight.request.request_id)}-{secrets.token_hex(4)}"
        submission = Submission(names.results(self._front, name), in_flight)
        self._open[submission.reply] = submission
        self._tasks.spawn(self._publish(submission))
        return submission

    def leave(self, submission: Submission) -> None:
        """Its outputs are not needed any more: abort it unless it is answered."""
        del self._open[submission.reply]
        if not submission.in_flight.is_answered:
            self._tasks.spawn(self._abort(submission))
        elif submission.publications > 1:  # its worker acknowledges one of the messages
            self._tasks.spawn(self._delete(submission))
        self._clean_up(submission.reply)

    def promote(self, submission: Submission) -> None:
        """Its deadline or priority has changed."""
        self._tasks.spawn(self._promote(submission))

    async def _publish(self, submission: Submission) -> None:
        submission.publications += 1
        in_flight = submission.in_flight
        headers = {"Nats-Msg-Id": f"{submission.reply}.{submission.publications}"}
        try:
            work = Work(
                reply=submission.reply,
                request=await self._uploads.send(submission.reply, in_flight.request),
                checkpoint=self._fleet.checkpoint,
                submitted=self._broker.clock.now(),
                deadline=self._broker.clock.shared(in_flight.deadline),
                is_again=submission.publications > 1,
            )
            subject = names.work(self._model_id, work.request.priority)
            stored = await self._broker.store(subject, encode(work), headers)
        except (APIError, nats.errors.Error) as error:
            in_flight.fail(GenerationError(f"the queue refuses the request: {error}"))
        else:
            submission.stored(stored.seq)
            if submission.reply not in self._open:
                await self._delete(submission)
                self._clean_up(submission.reply)

    async def _promote(self, submission: Submission) -> None:
        """Tell its worker. If it is still in the queue, or on its way to a worker, publish it again."""
        in_flight = submission.in_flight
        deadline = self._broker.clock.shared(in_flight.deadline)
        promotion = Promotion(deadline=deadline, priority=in_flight.request.priority)
        await self._broker.wait_up()
        await self._broker.client.publish(names.control(submission.reply), encode(promotion))
        if not submission.in_flight.has_begun:
            await self._publish_again(submission)

    async def _publish_again(self, submission: Submission) -> None:
        await self._delete(submission)
        if submission.reply in self._open:
            await self._publish(submission)

    async def _abort(self, submission: Submission) -> None:
        await self._broker.wait_up()
        await self._broker.client.publish(names.control(submission.reply), b"")
        await self._delete(submission)

    async def _delete(self, submission: Submission) -> None:
        """Take it out of the work stream."""
        sequence, submission.sequence = submission.sequence, None
        if sequence is None:
            return
        await self._broker.wait_up()
        try:
            await self._broker.jetstream.delete_msg(names.WORK.name, sequence)
        except (nats.errors.Error, TimeoutError) as error:  # it is gone, or goes when it is pulled
            logger.debug("%s is not deleted: %s", submission.reply, error)

    async def _on_progress(self, message: Msg) -> None:
        submission = self._open.get(message.subject.partition(".")[2])
        if submission is None:
            return
        try:
            submission.on_progress(decode(message.data, Progress))
        except (VersionError, msgspec.MsgspecError) as error:
            logger.debug("progress is ignored: %s", error)

    async def _on_message(self, message: Msg) -> None:
        if not await self._receive(message.subject, message.data):
            # Results were lost on the way, but are stored.
            await self._catch_up(names.reply_of(message.subject) + ".>")

    async def _receive(self, subject: str, data: bytes) -> bool:
        """Handle a result. Returns False if it is the last one, but others are missing."""
        reply = names.reply_of(subject)
        submission = self._open.get(reply)
        if submission is None or submission.in_flight.is_answered:
            self._clean_up(reply)
            return True
        name, _, _ = subject.removeprefix(f"{reply}.").partition(".")
        try:
            if name == "done":
                return submission.on_done(decode(data, Done))
            if name != "run":
                submission.on_part(name, decode(data, Part))
        except VersionError as error:
            self._give_up(submission, VersionMismatchError(str(error)))
        except msgspec.MsgspecError as error:
            self._give_up(submission, GenerationError(f"a result cannot be read: {error}"))
        return True

    def _give_up(self, submission: Submission, error: Exception) -> None:
        submission.in_flight.fail(error)
        self._tasks.spawn(self._abort(submission))

    async def _on_reconnect(self) -> None:
        if self._open:
            await self._catch_up(names.results(self._front, ">"))
            self._audit.suspect_all()

    async def _on_taken_for_dead(self, _: Msg) -> None:
        """A worker has dropped the requests of this front."""
        self._audit.suspect_all()

    async def _recover(self, submission: Submission) -> None:
        """Publish a request again that the work stream has lost, unless stored results answer it."""
        submission.sequence = None  # that of another message, if the stream is a new one
        await self._catch_up(f"{submission.reply}.>")
        if submission.reply not in self._open or submission.in_flight.is_answered:
            return
        logger.warning("%s was lost from the queue", submission.in_flight.request.request_id)
        if submission.publications >= MAX_PUBLICATIONS:
            submission.in_flight.fail(GenerationError("the queue loses the request again and again"))
        else:
            # An answer whose images were lost would keep workers from running it.
            await self._broker.purge(names.RESULTS, names.done(submission.reply))
            await self._publish(submission)

    async def _catch_up(self, subject: str) -> None:
        """Handle all stored results once more."""
        sequence = 1
        while True:
            try:
                found = await self._broker.jetstream.get_msg(
                    names.RESULTS.name, sequence, subject, direct=True, next=True
                )
            except NotFoundError:
                return
            except (nats.errors.Error, TimeoutError) as error:
                self._broker.on_failure(error)
                logger.warning("stored results cannot be read: %s", error or type(error).__name__)
                await asyncio.sleep(CLEAN_SECONDS)
                await self._broker.wait_up()
                continue
            sequence = (found.seq or 0) + 1
            await self._receive(found.subject or "", found.data or b"")

    def _clean_up(self, reply: str) -> None:
        """Remove its results soon, together with others."""
        self._over.add(reply)
        if self._cleaning is None or self._cleaning.done():
            self._cleaning = asyncio.create_task(self._clean())

    async def _clean(self) -> None:
        while self._over:
            await asyncio.sleep(CLEAN_SECONDS)
            await self._broker.wait_up()
            await self._remove_results()

    async def _remove_results(self) -> None:
        over, self._over = self._over, set()
        for reply in over:
            await self._broker.purge(names.RESULTS, f"{reply}.>")
            await self._uploads.remove(reply)
