"""Wire types: the request of `POST /v1/images` and what answers it."""

from dataclasses import asdict
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, JsonValue, create_model

from engine.config.model_config import MAX_GUIDANCE, MAX_STD, MAX_STEPS, MIN_GUIDANCE, ModelConfig
from engine.request import SamplingParams
from server.schemas.issue import Issue

MAX_PROMPT_CHARACTERS = 32_000
MAX_SEED = 2**31 - 1

OutputFormat: TypeAlias = Literal["png", "jpeg", "webp"]
Finite = Annotated[float, Field(allow_inf_nan=False, ge=-100, le=100)]
Guidance = Annotated[float, Field(allow_inf_nan=False, ge=MIN_GUIDANCE, le=MAX_GUIDANCE)]


# What the schema says of `prompt` and `json_prompt`; `parameters` checks it.
_ONE_PROMPT: list[JsonValue] = [
    {"required": ["prompt"], "properties": {"prompt": {"type": "string"}, "json_prompt": {"type": "null"}}},
    {
        "required": ["json_prompt"],
        "properties": {"json_prompt": {"type": "object"}, "prompt": {"type": "null"}},
    },
]


class PromptFields(BaseModel):
    """What to draw. Null means absent."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, json_schema_extra={"oneOf": _ONE_PROMPT}
    )

    prompt: str | None = Field(
        None,
        min_length=1,
        max_length=MAX_PROMPT_CHARACTERS,
        description="Text, or a structured caption as a JSON string.",
    )
    # Any: what JSON holds was read from JSON, and a second look at each of a megabyte's values takes long.
    json_prompt: dict[str, Any] | None = Field(
        None, description="A structured caption; exactly one of `prompt` and `json_prompt`."
    )
    caption: Literal["lenient", "strict"] | None = Field(
        None, description="What deviates in a caption is a warning (lenient, the default) or an error."
    )


class ImageRequest(PromptFields):
    """A request as sent. Null means absent; `limited_to` adds what the served model and server allow."""

    magic_prompt: Literal["auto", "on", "off"] | None = Field(
        None, description="Expand a plain prompt into a caption: if it can be done (auto), or else fail (on)."
    )
    model: str | None = Field(None, description="Id of the served model; another is a 404.")
    n: int | None = Field(None, ge=1, le=10, description="Images; image k uses seed + k.")
    size: str | None = Field(None, pattern=r"^(auto|[0-9]{1,5}x[0-9]{1,5})$", description="`WxH` or `auto`.")
    width: int | None = Field(None, description="Pixels; together with `height`, instead of `size`.")
    height: int | None = Field(None, description="Pixels; together with `width`, instead of `size`.")
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
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="Random if absent; always returned.")
    output_format: OutputFormat | None = None
    output_compression: int | None = Field(
        None, ge=0, le=100, description="Quality of jpeg and webp; 100 is best."
    )
    response_format: Literal["b64_json"] | None = None
    background: Literal["auto", "opaque"] | None = None
    stream: bool | None = Field(None, description="Answer with server-sent events.")
    partial_images: int | None = Field(
        None, ge=0, le=3, description="Previews of each image; needs `stream`."
    )
    progress: bool | None = Field(None, description="Send `image_generation.progress` events.")
    user: str | None = Field(None, description="Accepted, ignored.")
    safety_identifier: str | None = Field(None, description="Accepted, ignored.")
    moderation: str | None = Field(
        None, description="`off` needs a key that may; anything else is accepted and ignored."
    )
    provenance: Literal["on", "off"] | None = Field(
        None, description="Content credentials in the image; `off` needs a key that may."
    )
    style: str | None = Field(None, description="Accepted, ignored.")


def limited_to(config: ModelConfig, max_n: int) -> type[ImageRequest]:
    """ImageRequest with the limits of this model and server, for checking and for the schema alike."""
    limits = config.limits
    side = Field(None, ge=limits.min_size, le=limits.max_size, multiple_of=limits.multiple_of)
    preset: Any = Literal[tuple(config.presets)]
    return create_model(
        "ImageRequest",
        __base__=ImageRequest,
        __doc__=f"A request for {config.model_id}.",
        n=(int | None, Field(None, ge=1, le=max_n, description="Images; image k uses seed + k.")),
        width=(int | None, side),
        height=(int | None, side),
        preset=(preset | None, None),
    )


class ImageData(BaseModel):
    """One image, base64."""

    b64_json: str
    seed: int
    revised_prompt: str | None = Field(None, description="The caption that the prompt was expanded into.")


class InputTokensDetails(BaseModel):
    image_tokens: int
    text_tokens: int


class Usage(BaseModel):
    """Tokens read and image tokens made."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    total_tokens: int


class ImagesResponse(BaseModel):
    """The JSON answer."""

    id: str
    created: int
    model: str
    data: list[ImageData]
    output_format: OutputFormat
    quality: str
    size: str
    background: str
    usage: Usage
    warnings: list[Issue] | None = Field(None, description="Remarks on the caption or the request, if any.")


class CaptionReport(BaseModel):
    """A caption in its normal form; `prompt` is that as the model reads it. Both null for plain text."""

    valid: bool
    caption: dict[str, Any] | None
    prompt: str | None
    warnings: list[Issue]


class ModelPreset(BaseModel):
    num_inference_steps: int
    guidance_schedule: list[float]
    mu: float
    std: float


class ModelLimits(BaseModel):
    """Sizes in pixels."""

    min_size: int
    max_size: int
    multiple_of: int
    max_aspect_ratio: float
    max_prompt_tokens: int
    max_n: int


class Model(BaseModel):
    """The served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "ideoserve"
    fingerprint: str
    default_size: str
    default_preset: str
    presets: dict[str, ModelPreset]
    limits: ModelLimits

    @classmethod
    def of(cls, config: ModelConfig, max_n: int) -> "Model":
        return cls(
            id=config.model_id,
            created=config.created,
            fingerprint=config.fingerprint,
            default_size=f"{config.default_width}x{config.default_height}",
            default_preset=config.default_preset,
            presets={
                name: ModelPreset.model_validate(_preset(value)) for name, value in config.presets.items()
            },
            limits=ModelLimits(**asdict(config.limits), max_n=max_n),
        )


class ModelList(BaseModel):
    """One model."""

    object: Literal["list"] = "list"
    data: list[Model]


def _preset(preset: SamplingParams) -> dict[str, Any]:
    return asdict(preset) | {"num_inference_steps": preset.num_inference_steps}
