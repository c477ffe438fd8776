"""Wire types of the responses of `/v1/images`, `/v1/jobs` and `/v1/captions/validate`."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from engine.request import Priority
from server.schemas.errors import CaptionErrorDetail, ErrorDetail, RefusalDetail
from server.schemas.images import OutputFormat
from server.schemas.issue import Issue

MAX_PAGE = 100

JobStatus = Literal["queued", "running", "completed", "failed", "cancelled"]
UNFINISHED: tuple[JobStatus, ...] = ("queued", "running")


class ImageData(BaseModel):
    """One image: base64, or a URL if `response_format` is `url`."""

    b64_json: str | None = None
    url: str | None = Field(None, description="Expires after `url_ttl_seconds` of the server.")
    seed: int
    revised_prompt: str | None = Field(None, description="The caption that the prompt was expanded into.")


class InputTokensDetails(BaseModel):
    image_tokens: int
    text_tokens: int


class Usage(BaseModel):
    """Prompt tokens and image tokens, one per 16x16 pixels."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    total_tokens: int


class ImagesResponse(BaseModel):
    """The JSON response."""

    id: str
    created: int
    model: str
    data: list[ImageData]
    output_format: OutputFormat
    quality: str
    size: str
    background: str
    usage: Usage
    warnings: list[Issue] | None = Field(None, description="Warnings about the caption or the request.")


class ImageEstimate(BaseModel):
    """Predicted seconds, if no other request arrives: until the images are done (an upper bound), of the work
    ahead of them, and of the device for them."""

    seconds: float
    ahead_seconds: float
    device_seconds: float


class CaptionReport(BaseModel):
    """A caption in its normal form, and `prompt` as the model reads it. Both are null for plain text."""

    valid: bool
    caption: dict[str, Any] | None
    prompt: str | None
    warnings: list[Issue]


class JobImage(BaseModel):
    """A finished image. `url` is the path of its file on this server."""

    index: int
    seed: int
    url: str


class Job(BaseModel):
    """A job. Times are in Unix seconds. `progress` is the completed share of its steps, 0 to 1.

    `position` is 1 for the next queued job, and null once it runs. `predicted_seconds` is the time until
    the job is done if no other arrives; null once it is, or if no device is ready. It is deleted at
    `expires_at`.
    """

    id: str
    object: Literal["job"] = "job"
    status: JobStatus
    priority: Priority
    model: str
    created_at: int
    started_at: int | None
    finished_at: int | None
    expires_at: int
    position: int | None
    progress: float
    predicted_seconds: float | None
    images: list[JobImage]
    revised_prompt: str | None = Field(description="The caption that the prompt was expanded into.")
    usage: Usage | None
    warnings: list[Issue]
    error: CaptionErrorDetail | RefusalDetail | ErrorDetail | None
    metadata: dict[str, str]
    webhook: str | None


class JobList(BaseModel):
    """Jobs of the API key, the newest first. `next` is the `after` of the next page; null on the last."""

    object: Literal["list"] = "list"
    data: list[Job]
    has_more: bool
    next: str | None


class JobDeleted(BaseModel):
    """A finished job that was deleted with its images."""

    id: str
    object: Literal["job"] = "job"
    deleted: Literal[True] = True


class JobFilter(BaseModel):
    """The query of `GET /v1/jobs`. `created_after` and `created_before` are in Unix seconds."""

    status: JobStatus | None = None
    created_after: float | None = Field(None, ge=0, le=1e11, allow_inf_nan=False)
    created_before: float | None = Field(None, ge=0, le=1e11, allow_inf_nan=False)
    limit: int = Field(20, ge=1, le=MAX_PAGE)
    after: str | None = Field(None, pattern=r"^[0-9a-f]{1,16}\.job-[0-9a-f]{32}$")

    model_config = {"extra": "forbid"}

    @property
    def age(self) -> tuple[int, str]:
        """Creation in Unix milliseconds and id of the job before the page. Needs `after`."""
        created, _, job_id = (self.after or "").partition(".")
        return int(created, 16), job_id

    @classmethod
    def parameters(cls) -> list[dict[str, Any]]:
        """For the OpenAPI document."""
        properties = cls.model_json_schema()["properties"]
        return [
            {"name": name, "in": "query", "required": False, "schema": _schema(schema)}
            for name, schema in properties.items()
        ]


def _schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Without null, which a query cannot hold."""
    alternatives: list[dict[str, Any]] = schema.get("anyOf", [])
    chosen = next((part for part in alternatives if part.get("type") != "null"), {})
    return {key: value for key, value in {**schema, **chosen}.items() if key not in ("anyOf", "title")}
