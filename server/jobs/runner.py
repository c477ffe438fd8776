"""Runs the jobs of the queue on this server."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from itertools import chain

import nats
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig

from engine.errors import DeadlineExceededError, WorkerCrashedError
from engine.request import Priority
from server.generation.generations import Generations
from server.jobs.attempt import Attempt, CancelledJobError, can_retry
from server.jobs.job import JobRecord, JobSpec
from server.jobs.job_store import STREAM, ChangedError, StoredJob, subject
from server.jobs.jobs import Jobs
from server.queue import names
from server.schemas.errors import ApiError, from_engine
from server.transport.lifecycle import Lifecycle

logger = logging.getLogger(__name__)
PRIORITIES: tuple[Priority, ...] = ("interactive", "batch")
AT_ONCE = 8  # jobs of a priority on one server
ACK_SECONDS = 20.0  # after which another server runs the job of one that died
MAX_ATTEMPTS = 5
FETCH_SECONDS = 5.0
RETRY_SECONDS = 1.0
RECORD_RETRY_SECONDS = 0.05
UNKNOWN_RETRY_SECONDS = 60.0
OVERDUE_SECONDS = 10.0  # after its deadline, a job that no server runs fails


class Runner:
    """Pulls jobs while the server accepts work. A drain waits for the jobs that run."""

    def __init__(self, jobs: Jobs, generations: Generations, lifecycle: Lifecycle) -> None:
        self._jobs = jobs
        self._generations = generations
        self._lifecycle = lifecycle
        self._pulling: list[asyncio.Task[None]] = []
        self._running: dict[Priority, set[asyncio.Task[None]]] = {priority: set() for priority in PRIORITIES}

    def start(self) -> None:
        self._pulling = [asyncio.create_task(self._pull(priority)) for priority in PRIORITIES]
        self._pulling.append(asyncio.create_task(self._fail_overdue()))

    async def close(self) -> None:
        """Give the jobs that run back to the queue."""
        tasks = [*self._pulling, *chain.from_iterable(self._running.values())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _fail_overdue(self) -> None:
        """Fail the jobs that no server could run until their deadline."""
        while True:
            await asyncio.sleep(OVERDUE_SECONDS)
            for job in self._jobs.index.overdue(OVERDUE_SECONDS):
                with contextlib.suppress(ChangedError, nats.errors.Error, OSError, TimeoutError):
                    await self._fail(job.id)

    async def _fail(self, job_id: str) -> None:
        job = await self._jobs.store.find(job_id)
        if job is not None and not job.record.is_finished:
            await self._jobs.finish(job, job.record.failed(self._jobs.clock.now(), _late()))
            await self._jobs.store.dequeue(job.record)

    async def _pull(self, priority: Priority) -> None:
        """Subscribe again after each error."""
        while True:
            try:
                async with self._subscribed(priority) as queue:
                    await self._pull_from(queue, self._running[priority])
            except (nats.errors.Error, OSError, TimeoutError) as error:
                logger.debug("jobs are not pulled: %s", error)
            except Exception:
                logger.exception("jobs are not pulled")
            await asyncio.sleep(RETRY_SECONDS)

    @contextlib.asynccontextmanager
    async def _subscribed(self, priority: Priority) -> AsyncIterator[JetStreamContext.PullSubscription]:
        config, model = ConsumerConfig(ack_wait=ACK_SECONDS, max_ack_pending=-1), self._jobs.model
        queue = await self._jobs.broker.jetstream.pull_subscribe(
            subject(model, priority), durable=names.consumer(model, priority), stream=STREAM, config=config
        )
        try:
            yield queue
        finally:
            with contextlib.suppress(nats.errors.Error):
                await queue.unsubscribe()

    async def _pull_from(
        self, queue: JetStreamContext.PullSubscription, running: set[asyncio.Task[None]]
    ) -> None:
        while True:
            while len(running) >= AT_ONCE:
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            self._start(await self._next(queue), running)

    async def _next(self, queue: JetStreamContext.PullSubscription) -> Msg:
        while True:
            if not self._lifecycle.is_open():
                await asyncio.sleep(RETRY_SECONDS)
                continue
            with contextlib.suppress(TimeoutError):
                (message,) = await queue.fetch(1, timeout=FETCH_SECONDS)
                if self._lifecycle.is_open():
                    return message
                await message.nak()  # for another server

    def _start(self, message: Msg, running: set[asyncio.Task[None]]) -> None:
        task = asyncio.create_task(_Delivery(message, self._jobs, self._generations).handle())
        running.add(task)
        self._lifecycle.request_started()
        task.add_done_callback(running.discard)
        task.add_done_callback(lambda _: self._lifecycle.request_finished())


class _Delivery:
    """One job from the queue."""

    def __init__(self, message: Msg, jobs: Jobs, generations: Generations) -> None:
        self._message = message
        self._jobs = jobs
        self._generations = generations
        self._kept_alive = time.monotonic()

    async def handle(self) -> None:
        """Does not raise. A message that is neither acknowledged nor returned is delivered again."""
        try:
            await self._handle()
        except asyncio.CancelledError:
            await self._message.nak()
            raise
        except (ChangedError, CancelledJobError):
            pass  # another server has the job, or it is cancelled
        except (nats.errors.Error, OSError, TimeoutError) as error:
            logger.warning("a job is run again: %s", str(error) or type(error).__name__)
        except Exception:
            logger.exception("a job failed", extra={"fields": {"subject": self._message.subject}})

    async def _handle(self) -> None:
        try:
            spec = JobSpec.from_json(self._message.data)
        except ValueError as error:
            logger.error("a job cannot be read: %s", error)
            await self._message.nak(UNKNOWN_RETRY_SECONDS)  # a newer server can
            return
        job = await self._job(spec)
        if job is None:
            await self._message.nak(RECORD_RETRY_SECONDS)
            return
        if job.record.submission == spec.submission and not await self._was_settled(job):
            await self._run(spec, job)
            return
        await self._message.ack()

    async def _job(self, spec: JobSpec) -> StoredJob | None:
        """The record of the job. None if it is not written yet, or if the job was just deleted. In the
        first case the message is delivered again, and the record is created if its server died."""
        found = await self._jobs.store.find(spec.id)
        if found is None and self._message.metadata.num_delivered > 1:
            found = await self._jobs.store.create(JobRecord.of(spec))
        if found:
            self._jobs.index.put(found)
        return found

    async def _was_settled(self, job: StoredJob) -> bool:
        """Whether the job needs no run."""
        if job.record.is_finished:  # by a server that died before it acknowledged
            await self._jobs.settle(job.record)
        elif problem := _problem(job, now := self._jobs.clock.now()):
            await self._jobs.finish(job, job.record.failed(now, problem))
        else:
            return False
        return True

    async def _run(self, spec: JobSpec, job: StoredJob) -> None:
        attempt = Attempt(self._jobs, spec, job, self._keep_alive)
        try:
            record = await attempt.run(self._generations)
        except ApiError as error:
            if can_retry(error):
                await self._return(attempt.job, float(error.headers["Retry-After"]))
                return
            record = attempt.job.record.failed(self._jobs.clock.now(), error)
        await self._jobs.finish(attempt.job, record)
        await self._message.ack()

    async def _return(self, job: StoredJob, seconds: float) -> None:
        if job.record.status == "running":
            self._jobs.index.put(await self._jobs.store.update(job, job.record.requeued()))
        await self._message.nak(seconds)

    async def _keep_alive(self) -> None:
        if time.monotonic() - self._kept_alive > ACK_SECONDS / 4:
            self._kept_alive = time.monotonic()
            await self._message.in_progress()


def _late() -> ApiError:
    return from_engine(DeadlineExceededError("the deadline of the job passed"))


def _problem(job: StoredJob, now: float) -> ApiError | None:
    """Why the job is not run again."""
    if now > job.record.deadline:
        return _late()
    if job.record.attempts >= MAX_ATTEMPTS:
        return from_engine(WorkerCrashedError("the servers that ran the job died"))
    return None
