"""Which jobs there are, in the memory of each server."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

from nats.js.kv import KeyValue

from engine.request import Priority
from server.jobs.job import JobRecord
from server.jobs.job_store import GRACE_SECONDS, StoredJob
from server.schemas.responses import UNFINISHED, JobFilter, JobStatus

DELETED = ("DEL", "PURGE")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class IndexedJob:
    """The part of a record that lists and predictions need."""

    id: str
    owner: str
    model: str
    priority: Priority
    status: JobStatus
    created_at: float
    changed_at: float
    deadline: float
    device_seconds: float
    revision: int

    @classmethod
    def of(cls, record: JobRecord, revision: int) -> "IndexedJob":
        return cls(
            record.id,
            record.owner,
            record.model,
            record.priority,
            record.status,
            record.created_at,
            record.changed_at,
            record.deadline,
            record.device_seconds or 0.0,
            revision,
        )

    @property
    def is_finished(self) -> bool:
        return self.status not in UNFINISHED

    @property
    def age(self) -> tuple[int, str]:
        """Orders jobs by their creation."""
        return int(self.created_at * 1000), self.id

    @property
    def turn(self) -> tuple[bool, int, str]:
        """Orders queued jobs as they are run."""
        return self.priority == "batch", *self.age

    @property
    def cursor(self) -> str:
        return f"{self.age[0]:x}.{self.id}"


class JobIndex:
    """Follows the bucket; changes by this server count at once."""

    def __init__(self, ttl: float, now: Callable[[], float]) -> None:
        """`now` is the clock of the records."""
        self._ttl = ttl
        self._now = now
        self._jobs: dict[str, IndexedJob] = {}  # in the order of their last change
        self._task: asyncio.Task[None] | None = None

    async def start(self, records: KeyValue) -> None:
        """Returns once the records that exist are known."""
        watcher, ready = await records.watchall(), asyncio.Event()
        self._task = asyncio.create_task(self._follow(watcher, ready))
        await ready.wait()

    async def close(self) -> None:
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _follow(self, watcher: KeyValue.KeyWatcher, ready: asyncio.Event) -> None:
        async for entry in watcher:
            if entry is None:
                ready.set()
            elif entry.operation in DELETED:
                self.remove(entry.key, entry.revision or 0)
            else:
                self._add(entry)

    def _add(self, entry: KeyValue.Entry) -> None:
        assert entry.value is not None
        assert entry.revision is not None
        try:
            self.put(StoredJob(JobRecord.from_json(entry.value), entry.revision))
        except ValueError:
            logger.error("the record of a job cannot be read", extra={"fields": {"job_id": entry.key}})

    def put(self, job: StoredJob) -> None:
        known = self._jobs.get(job.record.id)
        if known is None or known.revision < job.revision:
            self._jobs.pop(job.record.id, None)
            self._jobs[job.record.id] = IndexedJob.of(*job)
        self._expire()

    def remove(self, job_id: str, revision: int) -> None:
        """Forget a job whose last revision was deleted."""
        known = self._jobs.get(job_id)
        if known and known.revision <= revision:
            del self._jobs[job_id]

    def find(self, job_id: str) -> IndexedJob | None:
        return self._jobs.get(job_id)

    def count(self, status: JobStatus) -> int:
        self._expire()
        return sum(job.status == status for job in self._jobs.values())

    def overdue(self, seconds: float) -> list[IndexedJob]:
        """The jobs that should have been finished so long ago."""
        before = self._now() - seconds
        return [job for job in self._jobs.values() if not job.is_finished and job.deadline < before]

    def ahead(self, job_id: str) -> list[IndexedJob]:
        """The queued jobs that run before this one."""
        self._expire()
        own = self._jobs.get(job_id)
        if own is None:
            return []
        return [
            job
            for job in self._jobs.values()
            if job.status == "queued" and job.model == own.model and job.turn < own.turn
        ]

    def page(self, owner: str, wanted: JobFilter) -> tuple[list[IndexedJob], bool]:
        """The jobs of a page, the newest first, and whether there are more."""
        self._expire()
        matching = [job for job in self._jobs.values() if job.owner == owner and _matches(job, wanted)]
        matching.sort(key=lambda job: job.age, reverse=True)
        return matching[: wanted.limit], len(matching) > wanted.limit

    def _expire(self) -> None:
        """Forget jobs whose records the broker has deleted, of which it sends no notice."""
        expired = self._now() - self._ttl - GRACE_SECONDS
        while self._jobs and (oldest := next(iter(self._jobs.values()))).changed_at < expired:
            del self._jobs[oldest.id]


def _matches(job: IndexedJob, wanted: JobFilter) -> bool:
    return (
        wanted.status in (None, job.status)
        and (wanted.created_after is None or job.created_at > wanted.created_after)
        and (wanted.created_before is None or job.created_at < wanted.created_before)
        and (wanted.after is None or job.age < wanted.age)
    )
