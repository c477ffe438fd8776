"""Job records in a bucket, and the stream of jobs to run."""

from typing import NamedTuple

from nats.js.errors import APIError, KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

from engine.request import Priority
from server.jobs.job import JobRecord, JobSpec
from server.queue import names
from server.queue.connection.broker import Broker
from server.queue.names import DAY, Bucket, Stream
from server.schemas.errors import ApiError

STREAM, BUCKET = "JOBS", "jobs"
# Records and requests are kept for longer than they can be used, so that a job which no server could run
# until its deadline fails, and its webhook is sent.
GRACE_SECONDS = 60.0
STREAM_IS_FULL = 10077
FULL_RETRY_SECONDS = 30


class StoredJob(NamedTuple):
    """A record, and its revision in the bucket."""

    record: JobRecord
    revision: int


class ChangedError(Exception):
    """The record was changed by another server or request."""


class JobStore:
    """Records are changed only from the revision that was read, so each job is finished once. `ttl` is
    the time that a job may take, and that it is kept afterwards, in seconds."""

    def __init__(self, broker: Broker, ttl: float, max_unfinished: int) -> None:
        self._broker = broker
        self._ttl = ttl
        self._max_unfinished = max_unfinished
        self.stream = Stream(STREAM, ("jobs.>",), "work", max_age=ttl + DAY, max_messages=max_unfinished)
        self.bucket = Bucket(BUCKET, ttl + GRACE_SECONDS)
        self._records: KeyValue

    async def start(self) -> KeyValue:
        """Returns the bucket."""
        await self._broker.declare_stream(self.stream)
        self._records = await self._broker.declare(self.bucket)
        return self._records

    async def enqueue(self, spec: JobSpec) -> None:
        """Raises ApiError 429 if too many jobs are unfinished."""
        try:
            await self._broker.jetstream.publish(subject(spec.model, spec.priority, spec.id), spec.to_json())
        except APIError as error:
            if error.err_code != STREAM_IS_FULL:
                raise
            message = f"{self._max_unfinished} jobs are queued or running, which is the limit."
            raise ApiError(429, "queue_full", message, retry_after=FULL_RETRY_SECONDS) from None

    async def dequeue(self, record: JobRecord) -> None:
        """Delete the job from the stream, wherever it runs."""
        await self._broker.jetstream.purge_stream(
            STREAM, subject=subject(record.model, record.priority, record.id)
        )

    async def find(self, job_id: str) -> StoredJob | None:
        """None if there is none, or if its time is over."""
        found = await self._read(job_id)
        return None if found is None or self._is_over(found.record) else found

    async def _read(self, job_id: str) -> StoredJob | None:
        try:
            entry = await self._records.get(job_id)
        except KeyNotFoundError:
            return None
        assert entry.value is not None
        assert entry.revision is not None
        return StoredJob(JobRecord.from_json(entry.value), entry.revision)

    def _is_over(self, record: JobRecord) -> bool:
        return record.is_finished and record.changed_at + self._ttl < self._broker.clock.now()

    async def create(self, record: JobRecord) -> StoredJob:
        """The stored record of this id: the given one, unless there was one before."""
        try:
            return StoredJob(record, await self._records.create(record.id, record.to_json()))
        except KeyWrongLastSequenceError:
            found = await self._read(record.id)
            if found is None:
                raise
            return await self.update(found, record) if self._is_over(found.record) else found

    async def update(self, job: StoredJob, record: JobRecord) -> StoredJob:
        """Raises ChangedError if `job` is not the last revision."""
        try:
            return StoredJob(record, await self._records.update(record.id, record.to_json(), job.revision))
        except KeyWrongLastSequenceError:
            raise ChangedError from None

    async def delete(self, job: StoredJob) -> None:
        """Delete the record of a finished job, after it was deleted from the stream. Raises ChangedError if
        `job` is not the last revision."""
        try:
            await self._records.delete(job.record.id, job.revision)
        except APIError as error:
            raise ChangedError from error


def subject(model: str, priority: Priority, job_id: str = "*") -> str:
    """Of one job, or of all of a model and priority."""
    return f"jobs.{names.token(model)}.{priority}.{job_id}"
