"""The request that the server hands to the engine. Torch-free."""

from dataclasses import dataclass
from typing import Literal

Priority = Literal["interactive", "batch"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """`guidance_schedule` has one value per step, in the order of sampling; `mu` is before the size shift."""

    guidance_schedule: tuple[float, ...]
    mu: float
    std: float

    @property
    def num_inference_steps(self) -> int:
        return len(self.guidance_schedule)


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One accepted request. `width` and `height` in pixels; one image per seed.

    `submitted` is in seconds of `time.monotonic()`, which all processes of a machine share. `num_previews`
    previews are sent of each image while it is generated. When a request runs again after its worker died,
    `skip` holds the indices of the images already sent, and `is_suspect` is set if it was in the unit of work
    in which the worker died.
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
