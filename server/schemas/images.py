"""Wire types of the requests of `POST /v1/images`, `/v1/jobs` and `/v1/captions/validate`."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, create_model, field_validator

from engine.config.model_config import MAX_GUIDANCE, MAX_STD, MAX_STEPS, MIN_GUIDANCE, ModelConfig
from server.schemas import dialect_schema
from server.schemas.dialects import FIELDS, Rule, translate
from server.schemas.errors import ApiError, invalid
from server.schemas.issue import Issue
from server.schemas.sizes import MAX_SIDE, RATIO_PATTERN, SIZE_PATTERN
from server.schemas.validation import invalid_request

MAX_PROMPT_CHARACTERS = 32_000
MAX_SEED = 2**31 - 1
MAX_SENT_SEED = 10**20 - 1  # 64 bits, also where a client rounded them to a float
MAX_METADATA, MAX_METADATA_KEY, MAX_METADATA_VALUE = 16, 64, 512  # entries and characters
MAX_WEBHOOK_CHARACTERS = 2048
MAX_ADAPTERS = 4
MAX_ADAPTER_SCALE = 2.0
N = "Number of images; image k uses seed + k."

OutputFormat: TypeAlias = Literal["png", "jpeg", "webp"]
SizePolicy: TypeAlias = Literal["strict", "nearest"]
MetadataValue = Annotated[str, Field(max_length=MAX_METADATA_VALUE)]
Finite = Annotated[float, Field(allow_inf_nan=False, ge=-100, le=100)]
Guidance = Annotated[float, Field(allow_inf_nan=False, ge=MIN_GUIDANCE, le=MAX_GUIDANCE)]


class AdapterChoice(BaseModel):
    """An adapter that a request applies."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=64, description="As in `GET /v1/adapters`.")
    scale: float | None = Field(
        None,
        ge=-MAX_ADAPTER_SCALE,
        le=MAX_ADAPTER_SCALE,
        allow_inf_nan=False,
        description="Multiplies the effect; if absent, the scale of `GET /v1/adapters`.",
    )
    steps: list[Annotated[int, Field(ge=0, le=MAX_STEPS)]] | None = Field(
        None,
        min_length=2,
        max_length=2,
        description="`[first, end]`: the adapter is applied in the steps from `first` (the first is 0) up "
        "to, not including, `end`; if absent, in all.",
    )


class PromptFields(BaseModel):
    """What to draw. Null and the empty string mean absent."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, json_schema_extra=dialect_schema.describe_prompt
    )
    dialects: ClassVar[Mapping[str, Rule]] = {}
    _warnings: tuple[Issue, ...] = PrivateAttr(())
    _sent_as: Mapping[str, str] = PrivateAttr({})

    prompt: str | None = Field(
        None,
        max_length=MAX_PROMPT_CHARACTERS,
        description="Text, or a structured caption as a JSON string.",
    )
    # Any: the values were parsed from JSON, and validating each of a megabyte again takes long.
    json_prompt: dict[str, Any] | None = Field(
        None, description="A structured caption; exactly one of `prompt` and `json_prompt`."
    )
    caption: Literal["lenient", "strict"] | None = Field(
        None, description="Deviations of a caption are warnings (lenient, the default) or an error."
    )

    @classmethod
    def read(cls, body: object) -> Self:
        """The request in a parsed JSON body. Raises ApiError 400; no message repeats what was sent."""
        if not isinstance(body, dict):
            raise invalid("The body must be a JSON object.", None, "invalid_type")
        translation = translate(body, cls.model_fields, cls.dialects)
        try:
            request = cls.model_validate(translation.fields)
        except ValidationError as error:
            raise invalid_request(error).renamed(translation.sent_as) from None
        request._warnings = tuple(translation.warnings)
        request._sent_as = translation.sent_as
        return request

    @property
    def warnings(self) -> tuple[Issue, ...]:
        """One per field that is ignored."""
        return self._warnings

    def named_as_sent(self, error: ApiError) -> ApiError:
        """The error with the client's name of the field."""
        return error.renamed(self._sent_as)


class ImageRequest(PromptFields):
    """A request as sent. Null and the empty string mean absent; `limited_to` adds the limits of the served
    model and server."""

    model_config = ConfigDict(json_schema_extra=dialect_schema.describe_request)
    dialects: ClassVar[Mapping[str, Rule]] = FIELDS

    magic_prompt: Literal["auto", "on", "off"] | None = Field(
        None,
        description="Expand a plain prompt into a caption: where possible (auto, the default), or fail (on).",
    )
    model: str | None = Field(
        None,
        description="Id of the served model or an alias, also with an adapter, `MODEL:ADAPTER`; any other is "
        "a 404.",
    )
    adapters: list[AdapterChoice] | None = Field(
        None,
        max_length=MAX_ADAPTERS,
        description="LoRA adapters that are applied together; see `GET /v1/adapters`.",
    )
    n: int | None = Field(None, ge=1, le=10, description=N)
    size: str | None = Field(
        None,
        max_length=64,
        json_schema_extra={"pattern": SIZE_PATTERN},
        description="`WxH`, an aspect ratio `W:H`, or `auto`.",
    )
    width: int | None = Field(None, ge=1, le=MAX_SIDE, description="Pixels; with `height`, not `size`.")
    height: int | None = Field(None, ge=1, le=MAX_SIDE, description="Pixels; with `width`, not `size`.")
    aspect_ratio: str | None = Field(
        None,
        max_length=64,
        json_schema_extra={"pattern": RATIO_PATTERN},
        description="`W:H`, `WxH` or `auto`: the allowed size of that shape with about the default area.",
    )
    size_policy: SizePolicy | None = Field(
        None, description="A size outside the limits is refused (strict) or rounded to the nearest (nearest)."
    )
    preset: str | None = Field(None, description="Named sampling parameters.")
    rendering_speed: Literal["TURBO", "DEFAULT", "QUALITY"] | None = None
    quality: Literal["low", "medium", "standard", "auto", "high", "hd"] | None = None
    num_inference_steps: int | None = Field(None, ge=1, le=MAX_STEPS)
    guidance_scale: Guidance | None = Field(None, description="One guidance for all steps.")
    guidance_schedule: list[Guidance] | None = Field(
        None,
        min_length=1,
        max_length=MAX_STEPS,
        description="One guidance per step, in the order of sampling.",
    )
    mu: Finite | None = Field(None, description="Mean of the noise schedule, before the size shift.")
    std: Annotated[float, Field(allow_inf_nan=False, gt=0, le=MAX_STD)] | None = Field(
        None, description="Spread of the noise schedule."
    )
    seed: int | None = Field(
        None,
        ge=-1,
        le=MAX_SENT_SEED,
        description="Random if -1 or absent; taken modulo 2^31, with a warning; always returned.",
    )
    output_format: OutputFormat | None = None
    output_compression: int | None = Field(
        None, ge=0, le=100, description="Quality of jpeg and webp; 100 is best."
    )
    response_format: Literal["b64_json", "url"] | None = Field(
        None,
        description="In JSON and events, images as base64 (b64_json, the default) or as URLs that expire "
        "(url), where the server has a store.",
    )
    background: Literal["auto", "opaque"] | None = None
    stream: bool | None = Field(None, description="Answer with server-sent events.")
    partial_images: int | None = Field(
        None, ge=0, le=3, description="Previews of each image; needs `stream`."
    )
    progress: bool | None = Field(None, description="Send `image_generation.progress` events.")
    user: str | None = Field(None, description="Accepted, ignored.")
    safety_identifier: str | None = Field(None, description="Accepted, ignored.")
    moderation: str | None = Field(
        None, description="`off` needs a key that allows it; any other value is ignored."
    )
    provenance: Literal["on", "off"] | None = Field(
        None, description="Content credentials in the image; `off` needs a key that allows it."
    )


def limited_to(config: ModelConfig, max_n: int) -> type[ImageRequest]:
    """ImageRequest with the limits of this model and server, for validation and for the schema."""
    limits = config.limits
    sides = f"a multiple of {limits.multiple_of} from {limits.min_size} to {limits.max_size}"
    side = Field(None, ge=1, le=MAX_SIDE, description=f"Pixels: {sides}; see `size_policy`.")
    preset: Any = Literal[tuple(config.presets)]
    return create_model(
        "ImageRequest",
        __base__=ImageRequest,
        __doc__=f"A request for {config.model_id}.",
        n=(int | None, Field(None, ge=1, le=max_n, description=N)),
        width=(int | None, side),
        height=(int | None, side),
        preset=(preset | None, None),
    )


class JobFields(BaseModel):
    """The fields that a job has besides those of an image request."""

    webhook: str | None = Field(
        None, max_length=MAX_WEBHOOK_CHARACTERS, description="URL that is sent the finished job."
    )
    metadata: dict[str, MetadataValue] | None = Field(
        None,
        max_length=MAX_METADATA,
        description=f"Returned with the job: at most {MAX_METADATA} keys of at most {MAX_METADATA_KEY} "
        f"characters, with texts of at most {MAX_METADATA_VALUE}.",
    )

    @field_validator("metadata")
    @classmethod
    def _has_short_keys(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        if any(len(key) > MAX_METADATA_KEY for key in value or ()):
            raise ValueError(f"keys should have at most {MAX_METADATA_KEY} characters")
        return value


class JobRequest(JobFields, ImageRequest):
    """An image request that runs as a job. `stream` does not apply."""


def job_request(image_request: type[ImageRequest]) -> type[JobRequest]:
    """JobRequest with the limits of `image_request`."""
    # The fields of the first base take precedence.
    bases: Any = (image_request, JobRequest)
    return create_model("JobRequest", __base__=bases, __doc__=JobRequest.__doc__)
