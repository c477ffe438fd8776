"""The configuration of a checkpoint: id, limits, default size and presets. Torch-free."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from engine.config.files import read_as, read_json
from engine.config.fingerprint import fingerprint
from engine.config.part_folders import PartFolders
from engine.config.vae_encoder import has_encoder
from engine.errors import CheckpointError
from engine.request import SamplingParams

# Bounds of sampling parameters, in requests and presets.
MAX_STEPS = 100
MIN_GUIDANCE, MAX_GUIDANCE = 1, 20
MAX_STD = 10

Side = Annotated[int, Field(ge=1, le=16_383)]  # the limit of WebP


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a request, with the published model's as defaults. Sizes are pixels of a side."""

    min_size: Side = 256
    max_size: Side = 2048
    multiple_of: Side = 16
    max_aspect_ratio: Annotated[float, Field(ge=1, le=100, allow_inf_nan=False)] = 6.0
    # Rotary positions from 65536 on belong to image tokens.
    max_prompt_tokens: Annotated[int, Field(ge=1, le=65_536)] = 2048

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", strict=True)

    def __post_init__(self) -> None:
        for key, size in (("min_size", self.min_size), ("max_size", self.max_size)):
            if size % self.multiple_of:
                raise ValueError(f"{key}: {size} is not a multiple of multiple_of, {self.multiple_of}")
        if self.min_size > self.max_size:
            raise ValueError(f"min_size: {self.min_size} is above max_size, {self.max_size}")

    def allow_sides(self, width: int, height: int) -> bool:
        """Whether both sides, in pixels, are in range and multiples of `multiple_of`."""
        sides = (width, height)
        return all(self.min_size <= side <= self.max_size and side % self.multiple_of == 0 for side in sides)

    def allow_ratio(self, width: int, height: int) -> bool:
        return max(width, height) <= self.max_aspect_ratio * min(width, height)


PUBLISHED_PRESETS: Mapping[str, SamplingParams] = {
    "V4_QUALITY_48": SamplingParams((7.0,) * 45 + (3.0,) * 3, mu=0.0, std=1.5),
    "V4_DEFAULT_20": SamplingParams((7.0,) * 18 + (3.0,) * 2, mu=0.0, std=1.75),
    "V4_TURBO_12": SamplingParams((7.0,) * 11 + (3.0,) * 1, mu=0.5, std=1.75),
}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A checkpoint: its folder, the folders of its parts, id, fingerprint, limits, default size in pixels and
    presets. `created` is a Unix time in seconds. `can_edit`: its VAE has an encoder.
    """

    path: Path
    folders: PartFolders
    model_id: str
    created: int
    fingerprint: str
    limits: Limits = field(default_factory=Limits)
    default_width: int = 1024
    default_height: int = 1024
    presets: Mapping[str, SamplingParams] = field(default_factory=lambda: PUBLISHED_PRESETS)
    can_edit: bool = False

    @property
    def default_preset(self) -> str:
        """V4_DEFAULT_20 if the checkpoint has it, else its first preset."""
        return "V4_DEFAULT_20" if "V4_DEFAULT_20" in self.presets else next(iter(self.presets))

    @property
    def is_guided(self) -> bool:
        """Whether any preset needs the unconditional pass."""
        return _is_guided(self.presets)

    @classmethod
    def load(
        cls,
        path: Path,
        model_id: str | None = None,
        transformer: Path | None = None,
        presets_file: Path | None = None,
        uncond_adapter: Path | None = None,
    ) -> "ModelConfig":
        """Read the optional `ideoserve.json` of the checkpoint in `path`, and compute its fingerprint.

        `model_id` overrides the checkpoint's id. `transformer` is a folder with another conditional
        transformer; presets in its `ideoserve.json` replace those of the checkpoint, and those of
        `presets_file` replace both. `uncond_adapter` is the file of an adapter that replaces the
        unconditional transformer. Raises CheckpointError if a file is missing or malformed.
        """
        index = path / "model_index.json"
        _require_folder(path)
        read_json(index)
        declared = _declared(path)
        width, height = declared.size
        presets = _presets(declared, transformer, presets_file)
        folders = PartFolders.of(path, transformer, _is_guided(presets))
        return cls(
            path=path,
            folders=folders,
            model_id=model_id or declared.id or _default_id(path),
            created=int(index.stat().st_mtime),
            fingerprint=fingerprint(path, folders.transformer if transformer else None, uncond_adapter),
            limits=declared.limits,
            default_width=width,
            default_height=height,
            presets=presets,
            can_edit=has_encoder(folders.vae),
        )


def _is_guided(presets: Mapping[str, SamplingParams]) -> bool:
    return any(scale != 1 for preset in presets.values() for scale in preset.guidance_schedule)


Steps = Annotated[int, Field(ge=1, le=MAX_STEPS)]
Scale = Annotated[float, Field(ge=MIN_GUIDANCE, le=MAX_GUIDANCE, allow_inf_nan=False)]


class DeclaredPreset(BaseModel, extra="forbid", strict=True):
    """A preset in `ideoserve.json`, whose `guidance_schedule` has pairs of a scale and a number of steps."""

    num_inference_steps: Steps
    guidance_schedule: Annotated[list[tuple[Scale, Steps]], Field(max_length=MAX_STEPS)]
    # Beyond these bounds all steps are at one end of the schedule, or almost all at the same time.
    mu: Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False)]
    std: Annotated[float, Field(ge=0.1, le=MAX_STD, allow_inf_nan=False)]

    @model_validator(mode="after")
    def _covers_every_step(self) -> "DeclaredPreset":
        covered = sum(repeat for _, repeat in self.guidance_schedule)
        if covered != self.num_inference_steps:
            raise ValueError(
                f"guidance_schedule covers {covered} steps, num_inference_steps is {self.num_inference_steps}"
            )
        return self

    def to_params(self) -> SamplingParams:
        schedule = tuple(scale for scale, repeat in self.guidance_schedule for _ in range(repeat))
        return SamplingParams(schedule, mu=self.mu, std=self.std)


def _check_id(name: str) -> str:
    """Check that the id can be used in URLs, logs and metrics."""
    if not name.isprintable() or name != name.strip() or name != name.strip("/"):
        raise ValueError("must be printable, without a space or slash at either end")
    return name


ModelId = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_check_id)]
PresetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


_Presets = Annotated[dict[PresetName, DeclaredPreset], Field(min_length=1, max_length=64)]


class _Declared(BaseModel, extra="forbid", strict=True):
    """The contents of `ideoserve.json`, with the published model's values as defaults."""

    id: ModelId | None = None
    limits: Limits = Limits()
    default_size: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$")] = "1024x1024"
    presets: _Presets | None = None

    @property
    def size(self) -> tuple[int, int]:
        width, height = map(int, self.default_size.split("x"))
        return width, height

    @model_validator(mode="after")
    def _allows_its_default(self) -> "_Declared":
        if not self.limits.allow_sides(*self.size) or not self.limits.allow_ratio(*self.size):
            raise ValueError(f"default_size: {self.default_size} is outside limits")
        return self


def _require_folder(path: Path) -> None:
    if not os.path.isdir(path):
        raise CheckpointError(f"{path}: no such folder")


def _declared(folder: Path) -> _Declared:
    file = folder / "ideoserve.json"
    return read_as(_Declared, file) if os.path.lexists(file) else _Declared()


def _presets(
    base: _Declared, transformer: Path | None, presets_file: Path | None
) -> Mapping[str, SamplingParams]:
    """The presets with the highest precedence: of the file, the transformer, the checkpoint, as published."""
    declared = base.presets
    if transformer:
        _require_folder(transformer)
        declared = _declared(transformer).presets or declared
    if presets_file:
        declared = read_as(_Presets, presets_file)
    return {name: preset.to_params() for name, preset in (declared or {}).items()} or PUBLISHED_PRESETS


def _default_id(path: Path) -> str:
    """The folder's name, or the repository of a snapshot in the hub's cache, whose name is a commit."""
    folder = path.resolve()
    name, cached = folder.name, re.fullmatch(r"models--(.+)", folder.parent.parent.name)
    if cached and folder.parent.name == "snapshots":
        name = cached[1].replace("--", "/")
    try:
        return TypeAdapter(ModelId).validate_python(name)
    except ValidationError as error:
        raise CheckpointError(
            f"{path / 'ideoserve.json'}: id: missing, and the name of the folder is not a valid id"
        ) from error
