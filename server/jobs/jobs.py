"""Jobs as the API sees them: submission, lists, cancellation, deletion."""

import asyncio
import contextlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple

import nats

from server.access.api_keys import Caller
from server.engine_port import Engine
from server.generation.generations import GenerationRequest, Generations
from server.jobs.job import JobRecord, JobSpec, job_id
from server.jobs.job_events import END, JobEvents
from server.jobs.job_index import JobIndex
from server.jobs.job_store import ChangedError, JobStore, StoredJob
from server.jobs.job_view import JobView
from server.queue.connection.broker import Broker
from server.queue.files.sources import JobSources
from server.responses.frames import Frame
from server.schemas.errors import ApiError, queue_unavailable, store_unavailable
from server.schemas.responses import Job, JobDeleted, JobFilter, JobList
from server.store.store import Store, StoreError
from server.webhooks.webhooks import Webhooks

JOB_ID = re.compile("job-[0-9a-f]{32}")
SETTLE_SECONDS = 5.0
UPLOAD_SECONDS = 20.0
logger = logging.getLogger(__name__)
job_logger = logging.getLogger("ideoserve.job")


class JobImageFile(NamedTuple):
    data: bytes
    media_type: str
    seed: int


class Jobs:
    """The jobs of all servers that share the queue."""

    def __init__(
        self,
        broker: Broker,
        engine: Engine,
        generations: Generations,
        files: Store,
        webhooks: Webhooks,
        ttl: float,
        max_unfinished: int,
        on_finished: Callable[[str, float], None],
    ) -> None:
        """`ttl` is in seconds. `on_finished` is called for each job that this server finishes, with its
        outcome and the seconds since its creation."""
        self.broker = broker
        self.clock = broker.clock
        self.store = JobStore(broker, ttl, max_unfinished)
        self.events = JobEvents(broker, ttl)
        self.index = JobIndex(ttl, broker.clock.now)
        self.files = files
        self.sources = JobSources(broker, ttl)
        self.model = engine.config.model_id
        self._generations = generations
        self._webhooks = webhooks
        self._on_finished = on_finished
        self.ttl = ttl
        self._view = JobView(self.index, self.events, engine, ttl)

    async def start(self) -> None:
        await self.sources.start()
        await self.events.start()
        await self.index.start(await self.store.start())

    async def close(self) -> None:
        await self.index.close()

    async def submit(
        self, request: GenerationRequest, webhook: str | None, metadata: Mapping[str, str]
    ) -> Job:
        """The job of a request: a new one, unless there is one of its Idempotency-Key. Raises ApiError 400,
        422, 429 or 503."""
        now, left = self.clock.now(), request.deadline - time.monotonic()
        device_seconds = await self._generations.device_seconds(request)
        if device_seconds is not None and device_seconds > left:
            message = f"This job needs {device_seconds:.1f} seconds; its deadline is in {left:.1f} seconds."
            raise ApiError(429, "deadline_unreachable", message, retry=False)
        spec = JobSpec(
            id=job_id(request.fingerprint),
            created_at=now,
            deadline=now + left,
            model=self.model,
            request=request,
            device_seconds=device_seconds,
            digest=request.fingerprint.digest.hex() if request.fingerprint else None,
            webhook=webhook and self._webhooks.check(webhook),
            metadata=metadata,
        )
        with self.reachable():
            return await self.describe(await self._submitted(spec))

    async def _submitted(self, spec: JobSpec) -> JobRecord:
        found = await self.store.find(spec.id) if spec.digest else None
        if found is None:
            found = await self._created(spec)
        if found.record.digest != spec.digest:
            message = "This Idempotency-Key was already used with another body."
            raise ApiError(422, "idempotency_key_reused", message, param="Idempotency-Key")
        return found.record

    async def _created(self, spec: JobSpec) -> StoredJob:
        """The image first, then the queue: a job that is queued but has no record is run, and gets one."""
        record = JobRecord.of(spec)
        if source := spec.request.parameters.source:
            async with asyncio.timeout(UPLOAD_SECONDS):
                await self.sources.put(record.submission, source)
        try:
            await self.store.enqueue(spec)
        except ApiError:
            await self.sources.delete(record.upload)
            raise
        found = await self.store.create(record)
        self.index.put(found)
        if found.record.submission != record.submission:
            await self.sources.delete(record.upload)
        return found

    async def find(self, job_id: str, caller: Caller) -> JobRecord:
        """Raises ApiError 404 or 503."""
        with self.reachable():
            return (await self._own(job_id, caller)).record

    async def describe(self, record: JobRecord) -> Job:
        """Raises ApiError 503."""
        with self.reachable():
            return await self._view.describe(record)

    async def page(self, caller: Caller, wanted: JobFilter) -> JobList:
        """Raises ApiError 503."""
        listed, has_more = self.index.page(caller.name, wanted)
        with self.reachable():
            found = await asyncio.gather(*(self.store.find(job.id) for job in listed))
            data = await asyncio.gather(*(self._view.describe(job.record) for job in found if job))
        return JobList(data=data, has_more=has_more, next=listed[-1].cursor if has_more else None)

    async def image(self, job_id: str, index: str, caller: Caller) -> JobImageFile:
        """Raises ApiError 404 or 503."""
        with self.reachable():
            record = (await self._own(job_id, caller)).record
            for image in record.images:
                if str(image.index) == index and (data := await self.files.get(image.name)):
                    return JobImageFile(data, record.media_type, image.seed)
        raise ApiError(404, "not_found", "This job has no such image.")

    async def has_read_all(self, record: JobRecord, event_id: int) -> bool:
        """Whether no event follows this one. Raises ApiError 503."""
        with self.reachable():
            end = await self.events.end_id(record.id) if record.is_finished else None
            return end is not None and event_id >= end

    async def delete(self, job_id: str, caller: Caller) -> Job | JobDeleted:
        """Cancel a job, or delete it if it is finished. Raises ApiError 404 or 503."""
        with self.reachable():
            while True:
                job = await self._own(job_id, caller)
                with contextlib.suppress(ChangedError):
                    return await self._delete(job) if job.record.is_finished else await self._cancel(job)

    async def finish(self, job: StoredJob, record: JobRecord) -> None:
        """Store the final record, and tell everyone who waits for it. Raises ChangedError."""
        await self._update(job, record)
        await self.settle(record)

    async def settle(self, record: JobRecord) -> None:
        """What follows the final record; doing it again changes nothing."""
        described = (await self._view.describe(record)).model_dump(mode="json")
        kind = f"job.{record.status}"
        await self.events.add(record.id, END, Frame(kind, {"job": described}))
        if record.webhook:
            message_id = f"{record.id}-{record.submission}"
            await self._webhooks.enqueue(message_id, record.webhook, _message(kind, record, described))

    async def _own(self, job_id: str, caller: Caller) -> StoredJob:
        """Raises ApiError 404 also for the jobs of other keys."""
        found = await self.store.find(job_id) if JOB_ID.fullmatch(job_id) else None
        if found is None or found.record.owner != caller.name:
            raise ApiError(404, "not_found", "This API key has no such job; it may have expired.")
        return found

    async def _update(self, job: StoredJob, record: JobRecord) -> None:
        """Store the final record; only one server succeeds. Raises ChangedError."""
        self.index.put(await self.store.update(job, record))
        await self.sources.delete(record.upload)
        seconds = record.changed_at - record.created_at
        self._on_finished(record.outcome, seconds)
        fields = {
            "job_id": record.id,
            "key": record.owner,
            "outcome": record.outcome,
            "priority": record.priority,
            "attempts": record.attempts,
            "seconds": round(seconds, 4),
        }
        job_logger.info("job", extra={"fields": fields})

    async def _cancel(self, job: StoredJob) -> Job:
        record = job.record.cancelled(self.clock.now())
        await self._update(job, record)
        with contextlib.suppress(TimeoutError):  # the server that pulls the job does the rest
            async with asyncio.timeout(SETTLE_SECONDS):
                await self.settle(record)
                await self.store.dequeue(record)
        return await self._view.describe(record)

    async def _delete(self, job: StoredJob) -> JobDeleted:
        record = job.record
        await self.store.dequeue(record)
        await self.store.delete(job)
        self.index.remove(record.id, job.revision)
        await self.events.delete(record.id)
        for image in record.images:
            await self.files.delete(image.name)
        return JobDeleted(id=record.id)

    @contextmanager
    def reachable(self) -> Iterator[None]:
        """Raises ApiError 502 or 503 if the store or the broker does not answer."""
        try:
            if not self.broker.is_up:
                raise TimeoutError
            yield
        except StoreError:
            raise store_unavailable() from None
        except (nats.errors.Error, OSError, TimeoutError) as error:
            self.broker.on_failure(error)
            logger.warning("the queue does not answer: %s", str(error) or type(error).__name__)
            raise queue_unavailable() from None


def _message(kind: str, record: JobRecord, described: Mapping[str, Any]) -> bytes:
    """The body of a webhook, by Standard Webhooks."""
    at = datetime.fromtimestamp(record.changed_at, UTC).isoformat()
    return json.dumps({"type": kind, "timestamp": at, "data": described}).encode()
