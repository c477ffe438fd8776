"""The response of `GET /v1/jobs/{id}/events`."""

from collections.abc import AsyncIterator

from server.jobs.job_events import StoredEvent
from server.jobs.jobs import Jobs
from server.observability.request_record import RequestRecord
from server.offload import offload
from server.responses.event_stream import FrameStream
from server.responses.frames import Frame, comment


class JobEventStream(FrameStream):
    """The events of a job from the first, or after the one that the client has read last; ends with that of
    its end, or once the job is deleted."""

    def __init__(
        self, jobs: Jobs, job_id: str, last_id: int, record: RequestRecord, ping_seconds: float
    ) -> None:
        super().__init__(record)
        self._jobs = jobs
        self._job_id = job_id
        self._last_id = last_id
        self._ping_seconds = ping_seconds

    async def frames(self) -> AsyncIterator[bytes]:
        with self._jobs.reachable():
            async with self._jobs.events.follow(self._job_id, self._ping_seconds) as events:
                async for event in events:
                    yield await self._encoded(event)
                    if event is None and self._jobs.index.find(self._job_id) is None:
                        return
                    if event is not None and event.is_last:
                        return

    async def _encoded(self, event: StoredEvent | None) -> bytes:
        if event is None:
            return comment("ping")
        if event.id <= self._last_id:
            return b""
        image = await self._jobs.files.get(event.file) if event.file else None
        frame = Frame(event.kind, event.fields, image)
        return _error(event) + await offload(len(image or b""), lambda: frame.encode(True, event.id))


def _error(event: StoredEvent) -> bytes:
    """The event of a failed image request, before that of the failed job."""
    error = event.fields["job"]["error"] if event.is_last else None
    return Frame("error", {"error": error}).encode() if error else b""
