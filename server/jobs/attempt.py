"""One run of a job."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from engine.messages import StepDone
from server.generation.generations import GenerationRequest, Generations
from server.generation.parameters import Parameters
from server.generation.transcript import Event, ImageFile, Preview, Subscription, Timings
from server.jobs.job import JobFile, JobRecord, JobSpec
from server.jobs.job_store import StoredJob
from server.jobs.jobs import Jobs
from server.responses.frames import Frame, frame_of
from server.schemas.errors import ApiError, store_unavailable
from server.store.names import file_name
from server.store.store import StoreError

STORE_RETRY_SECONDS = 2.0
TICK_SECONDS = 0.5  # after which a job without events is checked

KeepAlive = Callable[[], Awaitable[None]]


class CancelledJobError(Exception):
    """The job was cancelled or deleted, or another server runs it."""


class Attempt:
    """Writes the events and files of a job while it is generated."""

    def __init__(self, jobs: Jobs, spec: JobSpec, job: StoredJob, keep_alive: KeepAlive) -> None:
        """`keep_alive` is called at least every few seconds."""
        self._jobs = jobs
        self._spec = spec
        self._job = job
        self._keep_alive = keep_alive
        self._steps: dict[int, float] = {}
        self._files: list[JobFile] = []

    @property
    def job(self) -> StoredJob:
        """As this attempt has stored it last."""
        return self._job

    async def run(self, generations: Generations) -> JobRecord:
        """The record of the completed job. Raises ApiError, ChangedError or CancelledJobError."""
        subscription = await generations.submit(await self._request())
        try:
            record = self._job.record.started(self._jobs.clock.now())
            self._job = await self._jobs.store.update(self._job, record)
            self._jobs.index.put(self._job)
            return await self._follow(subscription)
        finally:
            subscription.leave()

    async def _request(self) -> GenerationRequest:
        """With the image of an edit. Raises ApiError."""
        deadline = self._jobs.clock.local(self._spec.deadline)
        request = self._spec.attempt(self._job.record.attempts + 1, deadline)
        if (source := request.parameters.source) is None:
            return request
        found = await self._jobs.sources.get(self._job.record.submission, source)
        if found is None:
            raise ApiError(500, "upload_lost", "The image of the job is not stored any more.", retry=False)
        return replace(request, parameters=replace(request.parameters, source=found))

    async def _follow(self, subscription: Subscription) -> JobRecord:
        transcript = subscription.transcript
        async for event in subscription.events(TICK_SECONDS):
            await self._keep_alive()
            self._check()
            if event is not None:
                parameters = transcript.parameters(self._spec.request.parameters)
                await self._store(event, frame_of(event, parameters, transcript.prompt_tokens), parameters)
        parameters = transcript.parameters(self._spec.request.parameters)
        files = tuple(sorted(self._files, key=lambda file: file.index))
        return self._job.record.completed(self._jobs.clock.now(), transcript, parameters, files)

    def _check(self) -> None:
        """Raises CancelledJobError."""
        known = self._jobs.index.find(self._spec.id)
        if known is None or known.revision > self._job.revision:
            raise CancelledJobError

    async def _store(self, event: Event, frame: Frame, parameters: Parameters) -> None:
        events, job_id = self._jobs.events, self._spec.id
        match event:
            case StepDone():
                await events.progress(job_id, frame, self._share(event))
            case Preview():
                await events.add(job_id, f"preview.{event.image_index}.{event.preview_index}", frame)
            case ImageFile():
                name = await self._put(event, parameters)
                await events.add(job_id, f"image.{event.image_index}", frame, name)
            case Timings():
                await events.add(job_id, "timings", frame)

    async def _put(self, image: ImageFile, parameters: Parameters) -> str:
        """The name of the stored file."""
        expires = int(self._jobs.clock.now() + self._jobs.ttl)
        name = file_name(self._spec.id, image.image_index, expires, parameters.output_format)
        await self._save(name, image.data)
        self._files.append(JobFile(image.image_index, image.seed, name))
        return name

    async def _save(self, name: str, data: bytes) -> None:
        """Store a file, again and again until the deadline of the job. Raises ApiError 502."""
        while True:
            try:
                await self._jobs.files.put(name, data)
                return
            except StoreError:
                if self._jobs.clock.now() > self._spec.deadline:
                    raise store_unavailable() from None
            await asyncio.sleep(STORE_RETRY_SECONDS)
            await self._keep_alive()
            self._check()

    def _share(self, step: StepDone) -> float:
        """The completed share of all steps."""
        self._steps[step.image_index] = step.step / step.num_steps
        return sum(self._steps.values()) / len(self._spec.request.parameters.seeds)


def can_retry(error: ApiError) -> bool:
    """Whether the same request may succeed later, such as after a refused admission."""
    return "Retry-After" in error.headers and error.headers.get("x-should-retry") != "false"
