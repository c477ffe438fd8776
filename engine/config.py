"""What a checkpoint says about itself: limits, default size and presets. Torch-free."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from engine.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a request. Sizes in pixels, each side; the defaults are the published model's."""

    min_size: PositiveInt = 256
    max_size: PositiveInt = 2048
    multiple_of: PositiveInt = 16
    max_aspect_ratio: PositiveFloat = 6.0
    max_prompt_tokens: PositiveInt = 2048

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, slots=True)
class Preset:
    """Named sampling parameters; `guidance_schedule` has one value per step, in the order of sampling."""

    guidance_schedule: tuple[float, ...]
    mu: float
    std: float

    @property
    def num_inference_steps(self) -> int:
        return len(self.guidance_schedule)


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How the engine runs. One worker per device; no devices: cuda where there is one, else cpu.

    `uncond_device` holds the unconditional transformer apart, both passes in parallel; `dtype` None or
    "bfloat16": bfloat16 where the device has it, else float32; `compile` the transformers' blocks, None:
    on cuda alone; `cuda_graphs`: on cuda record the unconditional pass and replay it. A step has at most
    `max_batch_size` samples (1..64) of `max_batch_tokens` image and prompt tokens in all (one sample may
    have more); `max_running` samples (1..1024) are in memory; `hang_seconds`: least silence of a worker
    before it counts as hung; `load_seconds`: longest load; `max_start_failures` in a row before a device
    counts as failed, and the engine as dead if all have.
    """

    devices: tuple[str, ...] = ()
    uncond_device: str | None = None
    dtype: str | None = None
    compile: bool | None = None
    cuda_graphs: bool = False
    max_batch_size: int = 8
    max_batch_tokens: int = 32_768
    max_running: int = 64
    hang_seconds: float = 30.0
    load_seconds: float = 1800.0
    max_start_failures: int = 3


PUBLISHED_PRESETS: Mapping[str, Preset] = {
    "V4_QUALITY_48": Preset((7.0,) * 45 + (3.0,) * 3, mu=0.0, std=1.5),
    "V4_DEFAULT_20": Preset((7.0,) * 18 + (3.0,) * 2, mu=0.0, std=1.75),
    "V4_TURBO_12": Preset((7.0,) * 11 + (3.0,) * 1, mu=0.5, std=1.75),
}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One served checkpoint: its folder, name, fingerprint, limits, default size (pixels) and presets."""

    path: Path
    model_id: str
    created: int
    fingerprint: str
    limits: Limits = field(default_factory=Limits)
    default_width: int = 1024
    default_height: int = 1024
    presets: Mapping[str, Preset] = field(default_factory=lambda: PUBLISHED_PRESETS)

    @property
    def default_preset(self) -> str:
        """V4_DEFAULT_20 where the checkpoint has it, else its first preset."""
        return "V4_DEFAULT_20" if "V4_DEFAULT_20" in self.presets else next(iter(self.presets))

    @classmethod
    def load(cls, path: Path, model_id: str | None = None) -> "ModelConfig":
        """Read `ideoserve.json` (optional) and the identity of the checkpoint in `path`.

        Raises CheckpointError if the folder is no checkpoint or the file is malformed.
        """
        index = path / "model_index.json"
        if not index.is_file():
            raise CheckpointError(f"{index}: no such file; --model needs a checkpoint folder")
        file = path / "ideoserve.json"
        declared = _read(file) if file.is_file() else _Declared()
        width, height = map(int, declared.default_size.split("x"))
        presets = {name: preset.to_preset() for name, preset in (declared.presets or {}).items()}
        return cls(
            path=path,
            model_id=model_id or declared.id or path.resolve().name,
            created=int(index.stat().st_mtime),
            fingerprint=_fingerprint(path),
            limits=declared.limits,
            default_width=width,
            default_height=height,
            presets=presets or PUBLISHED_PRESETS,
        )


class _DeclaredPreset(BaseModel, extra="forbid", strict=True):
    """`guidance_schedule` as pairs of a scale and how many steps have it."""

    num_inference_steps: int
    guidance_schedule: list[tuple[float, PositiveInt]]
    mu: float
    std: PositiveFloat

    @model_validator(mode="after")
    def _covers_every_step(self) -> "_DeclaredPreset":
        covered = sum(repeat for _, repeat in self.guidance_schedule)
        if covered != self.num_inference_steps:
            raise ValueError(
                f"guidance_schedule covers {covered} steps, num_inference_steps is {self.num_inference_steps}"
            )
        return self

    def to_preset(self) -> Preset:
        schedule = tuple(scale for scale, repeat in self.guidance_schedule for _ in range(repeat))
        return Preset(schedule, mu=self.mu, std=self.std)


class _Declared(BaseModel, extra="forbid", strict=True):
    """The contents of `ideoserve.json`; what it leaves out is the published model's."""

    id: str | None = None
    limits: Limits = Limits()
    default_size: Annotated[str, Field(pattern=r"^[1-9]\d*x[1-9]\d*$")] = "1024x1024"
    presets: Annotated[dict[str, _DeclaredPreset], Field(min_length=1)] | None = None


def _read(file: Path) -> _Declared:
    try:
        return _Declared.model_validate_json(file.read_bytes())
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        raise CheckpointError(f"{file}: {key}: {problem['msg']}") from error


def _fingerprint(path: Path) -> str:
    """12 hex digits over every config and the head (at most 1 MiB) and size of every weight file."""
    digest = hashlib.sha256()
    for file in sorted(path.glob("**/*")):
        if file.suffix in {".json", ".safetensors", ".jinja"}:
            with file.open("rb") as stream:
                digest.update(f"{file.relative_to(path)}:{file.stat().st_size}".encode())
                digest.update(stream.read(1 << 20))
    return digest.hexdigest()[:12]
