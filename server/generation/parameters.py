"""Resolve a valid request to the parameters of its images: defaults filled in, conflicts refused."""

import random
from dataclasses import dataclass, field

from engine.config.model_config import ModelConfig
from engine.request import AdapterUse, SamplingParams, SourceImage
from server.adapters.offer import Offer, listed
from server.adapters.selection import Selection
from server.captions.prompt import Prompt, read_prompt
from server.schemas import sizes
from server.schemas.errors import ApiError, invalid
from server.schemas.images import MAX_SEED, ImageRequest, OutputFormat, SizePolicy
from server.schemas.issue import Issue
from server.schemas.sizes import Size

PRESET_OF_SPEED = {"TURBO": "V4_TURBO_12", "DEFAULT": "V4_DEFAULT_20", "QUALITY": "V4_QUALITY_48"}
# `auto` is left out: it agrees with every preset and alone gives the default.
SPEED_OF_QUALITY = {
    "low": "TURBO",
    "medium": "DEFAULT",
    "standard": "DEFAULT",
    "high": "QUALITY",
    "hd": "QUALITY",
}
RANDOM_SEED = -1
EXAMPLES = {"size": "1024x1024", "aspect_ratio": "16:9"}
QUALITY_OF_PRESET = {"V4_TURBO_12": "low", "V4_DEFAULT_20": "medium", "V4_QUALITY_48": "high"}


@dataclass(frozen=True, slots=True)
class Parameters:
    """Everything that determines the pixels and their file format. Sizes in pixels; `source` is that of an
    edit."""

    prompt: Prompt
    width: int
    height: int
    seeds: tuple[int, ...]
    preset: str
    sampling: SamplingParams
    output_format: OutputFormat
    compression: int
    num_previews: int
    adapters: tuple[AdapterUse, ...] = ()
    source: SourceImage | None = None

    @property
    def size(self) -> str:
        return f"{self.width}x{self.height}"

    @property
    def quality(self) -> str:
        """OpenAI's name of the preset."""
        return QUALITY_OF_PRESET.get(self.preset, "medium")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The served model, its aliases, how to treat sizes outside its limits by default, and the adapters that
    an API key may use."""

    config: ModelConfig
    aliases: tuple[str, ...] = ()
    size_policy: SizePolicy = "strict"
    offer: Offer = field(default_factory=Offer)

    @property
    def names(self) -> tuple[str, ...]:
        return (self.config.model_id, *self.aliases)

    @property
    def adapted_names(self) -> list[str]:
        """The model with each adapter that can be used."""
        return [f"{self.config.model_id}:{name}" for name in self.offer.names]

    def adapter_in(self, name: str | None) -> str | None:
        """The adapter in the model id `MODEL:ADAPTER`; None if `name` is absent or a name of the model alone.
        Raises ApiError 404 for any other."""
        if name is None or name in self.names:
            return None
        for known in self.names:
            adapter = name.removeprefix(f"{known}:")
            if adapter != name and adapter in self.offer:
                return adapter
        message = f"Unknown model; this server serves {listed([*self.names, *self.adapted_names])}."
        raise ApiError(404, "model_not_found", message, param="model")


def resolve(wanted: ImageRequest, model: ServedModel, accepted: OutputFormat | None = None) -> Parameters:
    """Raises ApiError where fields contradict each other or the model. `accepted` is the format of Accept."""
    try:
        adapter = model.adapter_in(wanted.model)
        selection = Selection.of(wanted.adapters or (), adapter, model.offer)
        return _resolve(wanted, model, selection, accepted)
    except ApiError as error:
        raise wanted.named_as_sent(error) from None


def _resolve(
    wanted: ImageRequest, model: ServedModel, selection: Selection, accepted: OutputFormat | None
) -> Parameters:
    config = model.config
    size, size_warnings = _allowed_size(wanted, config, wanted.size_policy or model.size_policy)
    preset, defaults = _preset(wanted, config, selection)
    sampling = _sampling(wanted, config, defaults)
    warnings = (*wanted.warnings, *size_warnings, *_seed_warnings(wanted.seed))
    return Parameters(
        prompt=read_prompt(wanted).with_warnings(*warnings),
        width=size.width,
        height=size.height,
        seeds=_seeds(wanted.seed, wanted.n or 1),
        preset=preset,
        sampling=sampling,
        output_format=wanted.output_format or accepted or "png",
        compression=100 if wanted.output_compression is None else wanted.output_compression,
        num_previews=wanted.partial_images or 0,
        adapters=selection.uses(sampling.num_inference_steps),
    )


def _allowed_size(
    wanted: ImageRequest, config: ModelConfig, policy: SizePolicy
) -> tuple[Size, tuple[Issue, ...]]:
    """The size to make, with a warning if it was rounded."""
    limits, (param, size) = config.limits, _requested_size(wanted, config)
    if sizes.is_allowed(size, limits):
        return size, ()
    nearest = sizes.nearest(size, limits)
    if policy == "nearest":
        message = f"{size} was rounded to {nearest}. {sizes.describe(limits)}"
        return nearest, (Issue(code="size_rounded", path=None, message=message),)
    hint = f"The nearest allowed size is {nearest}; `size_policy` `nearest` rounds to it."
    raise invalid(f"{sizes.describe(limits)} {hint}", param)


def _requested_size(wanted: ImageRequest, config: ModelConfig) -> tuple[str, Size]:
    """The field that sets the size, and the size."""
    given = [name for name in ("size", "aspect_ratio") if getattr(wanted, name) not in (None, "auto")]
    given += ["width"] if wanted.width is not None else ["height"] if wanted.height is not None else []
    if len(given) > 1:
        raise invalid("Send one of `size`, `aspect_ratio`, and `width` with `height`.", given[0])
    if not given:
        return "size", Size(config.default_width, config.default_height)
    if given[0] in ("width", "height"):
        return _sides(wanted, config)
    return given[0], _parsed_size(given[0], getattr(wanted, given[0]), config)


def _sides(wanted: ImageRequest, config: ModelConfig) -> tuple[str, Size]:
    if wanted.width is None or wanted.height is None:
        missing = "width" if wanted.width is None else "height"
        raise invalid("`width` and `height` go together.", missing)
    param = "height" if config.limits.allow_sides(wanted.width, wanted.width) else "width"
    return param, Size(wanted.width, wanted.height)


def _parsed_size(param: str, text: str, config: ModelConfig) -> Size:
    sides = sizes.parse_sides(text) if param == "size" else None
    ratio = sizes.parse_ratio(text)
    if sides is not None:
        return sides
    if ratio is None or 0 in ratio:
        wanted = "`WxH`, `W:H` or `auto`" if param == "size" else "`W:H` or `auto`"
        raise invalid(f"`{param}` must be {wanted}, such as {EXAMPLES[param]}.", param)
    ideal = sizes.of_ratio(ratio, config.default_width * config.default_height)
    return sizes.nearest(ideal, config.limits) if config.limits.allow_ratio(*ratio) else ideal


def _preset(wanted: ImageRequest, config: ModelConfig, selection: Selection) -> tuple[str, SamplingParams]:
    """The preset that the request names, else that of an adapter, else the default of the model."""
    name = _named_preset(wanted, config)
    if name is None and (brought := selection.preset):
        return brought
    name = name or config.default_preset
    return name, config.presets[name]


def _named_preset(wanted: ImageRequest, config: ModelConfig) -> str | None:
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
    return next(iter(given.values()), None)


def _sampling(wanted: ImageRequest, config: ModelConfig, preset: SamplingParams) -> SamplingParams:
    guidance = _guidance(wanted, preset.guidance_schedule)
    if not config.is_guided and any(scale != 1 for scale in guidance):
        param = "guidance_scale" if wanted.guidance_schedule is None else "guidance_schedule"
        raise invalid(f"`{param}` must be 1: this model was made to run without guidance.", param)
    return SamplingParams(
        guidance_schedule=guidance,
        mu=preset.mu if wanted.mu is None else wanted.mu,
        std=preset.std if wanted.std is None else wanted.std,
    )


def _guidance(wanted: ImageRequest, default: tuple[float, ...]) -> tuple[float, ...]:
    schedule = wanted.guidance_schedule
    if schedule is not None:
        if wanted.guidance_scale is not None:
            raise invalid("Send one of `guidance_scale` and `guidance_schedule`.", "guidance_scale")
        steps = wanted.num_inference_steps or len(schedule)
        if len(schedule) != steps:
            raise invalid(f"`guidance_schedule` must have one number per step: {steps}.", "guidance_schedule")
        return tuple(schedule)
    steps = wanted.num_inference_steps or len(default)
    if wanted.guidance_scale is not None:
        return (wanted.guidance_scale,) * steps
    # Stretch the preset's schedule: each step takes the guidance at the same relative position.
    return tuple(default[index * len(default) // steps] for index in range(steps))


def _seeds(seed: int | None, n: int) -> tuple[int, ...]:
    first = random.randint(0, MAX_SEED) if seed is None or seed == RANDOM_SEED else seed
    return tuple((first + k) % (MAX_SEED + 1) for k in range(n))


def _seed_warnings(seed: int | None) -> tuple[Issue, ...]:
    if seed is None or seed <= MAX_SEED:
        return ()
    message = f"`seed` was taken modulo 2^31; the highest seed is {MAX_SEED}."
    return (Issue(code="seed_reduced", path=None, message=message),)
