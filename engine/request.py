"""The request that the server passes to the engine. Torch-free."""

from dataclasses import dataclass
from typing import Literal

Priority = Literal["interactive", "batch"]
# Share of `batch` work of a resolution in seats and device time, relative to `interactive` work of a
# resolution.
BATCH_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Parameters of the denoising loop; a preset is named SamplingParams.

    `guidance_schedule` has one guidance scale per step, in the order of sampling. `mu` and `std` shape the
    noise schedule; `mu` is the value before the shift by image size.
    """

    guidance_schedule: tuple[float, ...]
    mu: float
    std: float

    @property
    def num_inference_steps(self) -> int:
        return len(self.guidance_schedule)


@dataclass(frozen=True, slots=True)
class AdapterUse:
    """A LoRA adapter that a request applies.

    `path` is its safetensors file, `digest` the SHA-256 of the file's bytes: a replaced file is another
    adapter. `scale` multiplies its products; it is applied in steps `first_step` (0-based) up to, not
    including, `end_step`.
    """

    name: str
    path: str
    digest: str
    scale: float
    first_step: int = 0
    end_step: int = 1_000


@dataclass(frozen=True, slots=True)
class SourceImage:
    """The image that a request starts from, in the request's size.

    `rgb` is `height` x `width` x 3 bytes, row-major; `mask`, if any, `height` x `width` bytes: 255 is
    painted, 0 kept, between them blended. `strength` (0..1) decides at which step sampling starts: 1 ignores
    the source's content, 0 returns it. `fingerprint` is the SHA-256 of rgb and mask.
    """

    rgb: bytes
    mask: bytes | None
    strength: float
    fingerprint: str


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """A request for one image per seed. `width` and `height` are in pixels.

    `submitted` is in seconds of `time.monotonic()`, which all processes of a machine share. `num_previews` is
    the number of previews sent for each image. When a request runs again after its worker died, `skip` holds
    the indices of the images already sent, and `is_suspect` is set if it was in the worker's last unit of
    work.
    """

    request_id: str
    token_ids: tuple[int, ...]
    width: int
    height: int
    seeds: tuple[int, ...]
    sampling: SamplingParams
    num_previews: int = 0
    priority: Priority = "interactive"
    submitted: float = 0.0
    skip: frozenset[int] = frozenset()
    is_suspect: bool = False
    adapters: tuple[AdapterUse, ...] = ()
    source: SourceImage | None = None

    @property
    def resolution(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.width, self.height

    @property
    def first_step(self) -> int:
        """Index of the first step of the schedule that runs, as diffusers counts for image to image."""
        steps = self.sampling.num_inference_steps
        return int(steps - steps * self.source.strength) if self.source else 0

    @property
    def num_steps(self) -> int:
        """Steps that run for each image."""
        return self.sampling.num_inference_steps - self.first_step

    @property
    def encodes_source(self) -> bool:
        """Whether it needs its source's latents; at strength 1 only for what a mask keeps."""
        return self.source is not None and (self.first_step > 0 or self.source.mask is not None)
