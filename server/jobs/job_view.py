"""Describes jobs to clients."""

from server.engine_port import Engine
from server.jobs.job import JobRecord
from server.jobs.job_events import JobEvents
from server.jobs.job_index import JobIndex
from server.schemas.responses import Job, JobImage


class JobView:
    """The stored state of a job with its place in the queue and its progress."""

    def __init__(self, index: JobIndex, events: JobEvents, engine: Engine, ttl: float) -> None:
        self._index = index
        self._events = events
        self._engine = engine
        self._ttl = ttl

    async def describe(self, record: JobRecord) -> Job:
        progress = await self._progress(record)
        return Job(
            id=record.id,
            status=record.status,
            priority=record.priority,
            model=record.model,
            created_at=int(record.created_at),
            started_at=_seconds(record.started_at),
            finished_at=_seconds(record.finished_at),
            expires_at=int(record.changed_at + self._ttl),
            position=self._position(record),
            progress=progress,
            predicted_seconds=self._predicted_seconds(record, progress),
            images=_images(record),
            revised_prompt=record.revised_prompt,
            usage=record.usage,  # type: ignore[arg-type]
            warnings=list(record.warnings),
            error=record.error,  # type: ignore[arg-type]
            metadata=dict(record.metadata),
            webhook=record.webhook,
        )

    async def _progress(self, record: JobRecord) -> float:
        if record.status == "running":
            return await self._events.share(record.id)
        return 1.0 if record.status == "completed" else 0.0

    def _position(self, record: JobRecord) -> int | None:
        return len(self._index.ahead(record.id)) + 1 if record.status == "queued" else None

    def _predicted_seconds(self, record: JobRecord, progress: float) -> float | None:
        if record.is_finished or record.device_seconds is None or not self._engine.is_ready:
            return None
        if record.status == "running":
            return round(record.device_seconds * (1 - progress), 1)
        queued = sum(job.device_seconds for job in self._index.ahead(record.id))
        devices = max(1, self._engine.stats().devices.get("ready", 1))
        seconds = queued / devices + self._engine.backlog_seconds(record.priority) + record.device_seconds
        return round(seconds, 1)


def _images(record: JobRecord) -> list[JobImage]:
    return [
        JobImage(index=image.index, seed=image.seed, url=f"/v1/jobs/{record.id}/images/{image.index}")
        for image in record.images
    ]


def _seconds(time: float | None) -> int | None:
    return None if time is None else int(time)
