"""The request that the server hands to the engine. Torch-free."""

from dataclasses import dataclass, replace
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

    `deadline` and `submitted` are in seconds of `time.monotonic()`, which all processes of a machine
    share; `num_previews` is how many previews each image sends while it is made. A request that runs
    again after its worker died has its done images in `skip`, and `is_suspect` if the worker died on it.
    """

    request_id: str
    token_ids: tuple[int, ...]
    width: int
    height: int
    seeds: tuple[int, ...]
    sampling: SamplingParams
    num_previews: int = 0
    deadline: float | None = None
    priority: Priority = "interactive"
    submitted: float = 0.0
    skip: frozenset[int] = frozenset()
    is_suspect: bool = False

    def promoted(self, deadline: float | None, priority: Priority) -> "EngineRequest":
        """With the later deadline and the higher priority, of its own and these. None is no deadline."""
        own = self.deadline
        latest = None if own is None or deadline is None else max(own, deadline)
        highest = priority if self.priority == "batch" else self.priority
        return replace(self, deadline=latest, priority=highest)
