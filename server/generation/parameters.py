"""A valid request to what will be made: defaults filled in, the fields that exclude each other settled."""

import random
import re
from dataclasses import dataclass

from engine.config.model_config import Limits, ModelConfig
from engine.request import SamplingParams
from server.captions.prompt import Prompt, read_prompt
from server.schemas.errors import ApiError, invalid
from server.schemas.images import MAX_SEED, ImageRequest, OutputFormat

PRESET_OF_SPEED = {"TURBO": "V4_TURBO_12", "DEFAULT": "V4_DEFAULT_20", "QUALITY": "V4_QUALITY_48"}
# `auto` is no opinion, so it agrees with every preset and alone gives the default.
SPEED_OF_QUALITY = {
    "low": "TURBO",
    "medium": "DEFAULT",
    "standard": "DEFAULT",
    "high": "QUALITY",
    "hd": "QUALITY",
}
QUALITY_OF_PRESET = {"V4_TURBO_12": "low", "V4_DEFAULT_20": "medium", "V4_QUALITY_48": "high"}


@dataclass(frozen=True, slots=True)
class Parameters:
    """Everything that decides the pixels and their file format. Sizes in pixels."""

    prompt: Prompt
    width: int
    height: int
    seeds: tuple[int, ...]
    preset: str
    sampling: SamplingParams
    output_format: OutputFormat
    compression: int
    num_previews: int

    @property
    def size(self) -> str:
        return f"{self.width}x{self.height}"

    @property
    def quality(self) -> str:
        """OpenAI's word for the preset."""
        return QUALITY_OF_PRESET.get(self.preset, "medium")


def resolve(wanted: ImageRequest, config: ModelConfig, accepted: OutputFormat | None = None) -> Parameters:
    """Raises ApiError where fields contradict each other or the model. `accepted` is the format of Accept."""
    if wanted.model is not None and wanted.model != config.model_id:
        raise ApiError(404, "model_not_found", "This server does not serve that model.", param="model")
    width, height = _size(wanted, config)
    preset = _preset(wanted, config)
    return Parameters(
        prompt=read_prompt(wanted),
        width=width,
        height=height,
        seeds=_seeds(wanted.seed, wanted.n or 1),
        preset=preset,
        sampling=_sampling(wanted, config.presets[preset]),
        output_format=wanted.output_format or accepted or "png",
        compression=100 if wanted.output_compression is None else wanted.output_compression,
        num_previews=wanted.partial_images or 0,
    )


def _size(wanted: ImageRequest, config: ModelConfig) -> tuple[int, int]:
    if (wanted.width is None) != (wanted.height is None):
        missing = "width" if wanted.width is None else "height"
        raise invalid("`width` and `height` go together.", missing)
    if wanted.width is not None and wanted.height is not None:
        if wanted.size is not None:
            raise invalid("Either `size` or `width` and `height`.", "size")
        return _within(wanted.width, wanted.height, config.limits, "width")
    if wanted.size is None or wanted.size == "auto":
        return config.default_width, config.default_height
    match = re.fullmatch(r"([0-9]+)x([0-9]+)", wanted.size)
    if match is None:
        raise invalid("`size` is `WxH` or `auto`.", "size")
    return _within(int(match[1]), int(match[2]), config.limits, "size")


def _within(width: int, height: int, limits: Limits, param: str) -> tuple[int, int]:
    if not limits.allow_sides(width, height):
        low, high, step = limits.min_size, limits.max_size, limits.multiple_of
        raise invalid(f"Width and height are multiples of {step} from {low} to {high}.", param)
    if not limits.allow_ratio(width, height):
        raise invalid(f"The aspect ratio is at most {limits.max_aspect_ratio:g}:1.", param)
    return width, height


def _preset(wanted: ImageRequest, config: ModelConfig) -> str:
    speeds = {
        "preset": wanted.preset,
        "rendering_speed": PRESET_OF_SPEED.get(wanted.rendering_speed or ""),
        "quality": PRESET_OF_SPEED.get(SPEED_OF_QUALITY.get(wanted.quality or "", "")),
    }
    given = {param: name for param, name in speeds.items() if name is not None}
    for param, name in given.items():
        if name not in config.presets:
            raise invalid("This model has no such preset.", param)
        if name != next(iter(given.values())):
            raise invalid(f"`{param}` and `{next(iter(given))}` name different presets.", param)
    return next(iter(given.values()), config.default_preset)


def _sampling(wanted: ImageRequest, preset: SamplingParams) -> SamplingParams:
    return SamplingParams(
        guidance_schedule=_guidance(wanted, preset.guidance_schedule),
        mu=preset.mu if wanted.mu is None else wanted.mu,
        std=preset.std if wanted.std is None else wanted.std,
    )


def _guidance(wanted: ImageRequest, default: tuple[float, ...]) -> tuple[float, ...]:
    schedule = wanted.guidance_schedule
    if schedule is not None:
        if wanted.guidance_scale is not None:
            raise invalid("Either `guidance_scale` or `guidance_schedule`.", "guidance_scale")
        steps = wanted.num_inference_steps or len(schedule)
        if len(schedule) != steps:
            raise invalid(f"`guidance_schedule` needs one number per step: {steps}.", "guidance_schedule")
        return tuple(schedule)
    steps = wanted.num_inference_steps or len(default)
    if wanted.guidance_scale is not None:
        return (wanted.guidance_scale,) * steps
    # The preset's schedule at another length: each step takes the guidance of the same relative place.
    return tuple(default[index * len(default) // steps] for index in range(steps))


def _seeds(seed: int | None, n: int) -> tuple[int, ...]:
    first = random.randint(0, MAX_SEED) if seed is None else seed
    return tuple((first + k) % (MAX_SEED + 1) for k in range(n))
