"""A job as it is stored: what any server needs to run it, and its state."""

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from engine.request import Priority
from server.generation.generations import GenerationRequest
from server.generation.idempotency import Fingerprint
from server.generation.image_encoder import MEDIA_TYPES
from server.generation.parameters import Parameters
from server.generation.transcript import Transcript
from server.queue.files.sources import without_pixels
from server.responses.images_response import usage
from server.schemas.errors import ApiError
from server.schemas.issue import Issue
from server.schemas.responses import UNFINISHED, JobStatus
from server.schemas.validation import first_problem

VERSION = 3


@dataclass(frozen=True, slots=True)
class JobSpec:
    """A valid request of a job, with its seeds and the permissions that its key had at submission.

    `deadline` and `created_at` are in Unix seconds, by the broker's clock; those of `request` are not used.
    `device_seconds` is the predicted time on a device, None if none was ready. `digest` is that of the body
    sent with an Idempotency-Key. `submission` tells apart submissions with one such key, of which one is run.
    """

    id: str
    created_at: float
    deadline: float
    model: str
    request: GenerationRequest
    device_seconds: float | None = None
    digest: str | None = None
    webhook: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    submission: str = field(default_factory=lambda: uuid.uuid4().hex)
    version: int = VERSION

    @property
    def priority(self) -> Priority:
        return self.request.priority

    @property
    def owner(self) -> str:
        """Name of the API key."""
        return self.request.caller.name

    def to_json(self) -> bytes:
        """Without the pixels of an edit."""
        parameters = self.request.parameters
        stored = replace(parameters, source=without_pixels(parameters.source))
        request = replace(self.request, fingerprint=None, deadline=0, parameters=stored)
        return _SPEC.dump_json(replace(self, request=request))

    @classmethod
    def from_json(cls, data: bytes) -> "JobSpec":
        """Raises ValueError, without content of the job, for one of another version."""
        version = _VERSION.validate_json(data).get("version")
        if version != VERSION:
            raise ValueError(f"the job has version {version}; this server runs version {VERSION}")
        try:
            return _SPEC.validate_json(data)
        except ValidationError as error:
            raise ValueError(f"the job is invalid at {first_problem(error).path}") from None

    def attempt(self, number: int, deadline: float) -> GenerationRequest:
        """The request of an attempt, whose id no other attempt has. `deadline` is that of the job, in seconds
        of `time.monotonic()`."""
        return replace(self.request, request_id=f"{self.id}-{number}", deadline=deadline)


@dataclass(frozen=True, slots=True)
class JobFile:
    """A finished image and the name of its file."""

    index: int
    seed: int
    name: str


@dataclass(frozen=True, slots=True)
class JobRecord:
    """Times are in Unix seconds, by the broker's clock. `attempts` counts the times that the job was started.
    `error`, `usage` and `warnings` are those of the API."""

    id: str
    owner: str
    priority: Priority
    model: str
    media_type: str
    created_at: float
    deadline: float
    device_seconds: float | None
    digest: str | None
    submission: str
    webhook: str | None
    metadata: Mapping[str, str]
    status: JobStatus = "queued"
    attempts: int = 0
    started_at: float | None = None
    finished_at: float | None = None
    images: tuple[JobFile, ...] = ()
    revised_prompt: str | None = None
    usage: Mapping[str, Any] | None = None
    warnings: tuple[Issue, ...] = ()
    error: Mapping[str, Any] | None = None
    is_edit: bool = False

    @classmethod
    def of(cls, spec: JobSpec) -> "JobRecord":
        return cls(
            id=spec.id,
            owner=spec.owner,
            priority=spec.priority,
            model=spec.model,
            media_type=MEDIA_TYPES[spec.request.parameters.output_format],
            created_at=spec.created_at,
            deadline=spec.deadline,
            device_seconds=spec.device_seconds,
            digest=spec.digest,
            submission=spec.submission,
            webhook=spec.webhook,
            metadata=spec.metadata,
            is_edit=spec.request.parameters.source is not None,
        )

    @property
    def upload(self) -> str | None:
        """Name of the image of an edit. The submission that lost a race has another."""
        return self.submission if self.is_edit else None

    @property
    def is_finished(self) -> bool:
        return self.status not in UNFINISHED

    @property
    def outcome(self) -> str:
        """In metrics and the log: ok, cancelled or an error code."""
        if self.error is not None:
            return str(self.error["code"])
        return "ok" if self.status == "completed" else self.status

    @property
    def changed_at(self) -> float:
        return self.finished_at or self.started_at or self.created_at

    def started(self, now: float) -> "JobRecord":
        return replace(self, status="running", attempts=self.attempts + 1, started_at=now)

    def requeued(self) -> "JobRecord":
        return replace(self, status="queued")

    def completed(
        self, now: float, transcript: Transcript, parameters: Parameters, images: tuple[JobFile, ...]
    ) -> "JobRecord":
        """`parameters` are those of the transcript."""
        return replace(
            self._finished("completed", now),
            images=images,
            revised_prompt=transcript.revised_prompt,
            usage=usage(transcript.prompt_tokens, parameters, len(images)).model_dump(),
            warnings=transcript.warnings,
        )

    def failed(self, now: float, error: ApiError) -> "JobRecord":
        return replace(self._finished("failed", now), error=error.body().error.model_dump())

    def cancelled(self, now: float) -> "JobRecord":
        return self._finished("cancelled", now)

    def _finished(self, status: JobStatus, now: float) -> "JobRecord":
        return replace(self, status=status, finished_at=now)

    def to_json(self) -> bytes:
        return _RECORD.dump_json(self)

    @classmethod
    def from_json(cls, data: bytes) -> "JobRecord":
        return _RECORD.validate_json(data)


def job_id(fingerprint: Fingerprint | None) -> str:
    """The same for all requests of a key with one Idempotency-Key."""
    if fingerprint is None:
        return "job-" + uuid.uuid4().hex
    scope = "\0".join(fingerprint.scope)
    return "job-" + hashlib.sha256(scope.encode()).hexdigest()[:32]


_VERSION = TypeAdapter(dict[str, Any])
_SPEC = TypeAdapter(JobSpec)
_RECORD = TypeAdapter(JobRecord)
