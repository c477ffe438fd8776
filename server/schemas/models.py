"""Wire types of `GET /v1/models`."""

from dataclasses import asdict
from typing import Any, Literal

from pydantic import BaseModel

from engine.config.model_config import ModelConfig
from engine.request import SamplingParams


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
    """The served model; `root` is its id where `id` is an alias."""

    id: str
    root: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "ideoserve"
    fingerprint: str
    default_size: str
    default_preset: str
    presets: dict[str, ModelPreset]
    limits: ModelLimits

    @classmethod
    def of(cls, config: ModelConfig, name: str, max_n: int) -> "Model":
        return cls(
            id=name,
            root=config.model_id,
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
    """The served model under each of its names."""

    object: Literal["list"] = "list"
    data: list[Model]


def _preset(preset: SamplingParams) -> dict[str, Any]:
    return asdict(preset) | {"num_inference_steps": preset.num_inference_steps}
