"""Wire types of `GET /v1/models` and `GET /v1/adapters`."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, Literal

from pydantic import BaseModel, Field

from engine.config.model_config import ModelConfig
from engine.precision import Matmul, Precision
from engine.request import SamplingParams


class ModelPreset(BaseModel):
    num_inference_steps: int
    guidance_schedule: list[float]
    mu: float
    std: float

    @classmethod
    def of(cls, preset: SamplingParams) -> "ModelPreset":
        facts: dict[str, Any] = asdict(preset)
        return cls(num_inference_steps=preset.num_inference_steps, **facts)


class ModelLimits(BaseModel):
    """Sizes in pixels."""

    min_size: int
    max_size: int
    multiple_of: int
    max_aspect_ratio: float
    max_prompt_tokens: int
    max_n: int


class ModelPrecision(BaseModel):
    """`weights`: `fp8`, `nf4`, `bfloat16` or `float32`; `widened`: fp8 or nf4 weights are kept in the compute
    dtype; `dtype`: the compute dtype."""

    weights: str
    widened: bool
    matmul: Matmul
    dtype: str


class Model(BaseModel):
    """The served model; `root` is its id where `id` is an alias, or has an adapter as `MODEL:ADAPTER`.
    `precision` is null until a device is ready. `features` are the optional ones that this server has:
    magic_prompt, moderation, provenance."""

    id: str
    root: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "ideoserve"
    fingerprint: str
    precision: ModelPrecision | None
    default_size: str
    default_preset: str
    presets: dict[str, ModelPreset]
    limits: ModelLimits
    features: list[str]
    edits: bool = Field(description="Whether `/v1/images/edits` takes images.")
    adapter: str | None

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        precision: Precision | None,
        name: str,
        max_n: int,
        features: Iterable[str],
        edits: bool = False,
        adapter: str | None = None,
    ) -> "Model":
        return cls(
            id=name,
            root=config.model_id,
            created=config.created,
            fingerprint=config.fingerprint,
            precision=ModelPrecision.model_validate(asdict(precision)) if precision else None,
            default_size=f"{config.default_width}x{config.default_height}",
            default_preset=config.default_preset,
            presets={name: ModelPreset.of(value) for name, value in config.presets.items()},
            limits=ModelLimits(**asdict(config.limits), max_n=max_n),
            features=sorted(features),
            edits=edits,
            adapter=adapter,
        )


class ModelList(BaseModel):
    """The served model under each of its names, and with each adapter."""

    object: Literal["list"] = "list"
    data: list[Model]


class Adapter(BaseModel):
    """An adapter that requests can name.

    `error` says why a broken one cannot be used, or why a download failed that is tried again. `scale` and
    `preset` are the defaults of requests with it; without `preset`, that is the default preset of the model.
    What its file says is null until it is read: `digest` (SHA-256), `format`, `rank`, the number of `modules`
    that it changes, its size in `bytes`, and `target`, the transformers that it changes.
    """

    name: str
    object: Literal["adapter"] = "adapter"
    model: str
    status: Literal["ready", "loading", "broken"]
    error: str | None
    scale: float
    preset: ModelPreset | None
    trigger_words: list[str]
    digest: str | None
    format: str | None
    rank: int | None
    modules: int | None
    bytes: int | None
    target: str | None


class AdapterList(BaseModel):
    """The adapters that the API key may use, sorted by name."""

    object: Literal["list"] = "list"
    data: list[Adapter]
