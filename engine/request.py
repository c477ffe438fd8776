"""State of the work in flight; the model itself keeps none."""

from dataclasses import dataclass, field

from torch import Tensor

from engine.messages import EngineRequest
from engine.models.dit import Modulation

BatchKey = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What a request's steps share. `times` (steps + 1,) float64; `text` (L, D) projected prompt tokens.

    The modulations hold every step of the schedule; `unconditional` is None if no step is guided.
    """

    text: Tensor
    times: Tensor
    conditional: Modulation
    unconditional: Modulation | None


@dataclass(eq=False, slots=True)
class SampleState:
    """One image on its way: `latents` (N, C) float32 after `step_index` steps."""

    request: EngineRequest
    image_index: int
    conditioning: Conditioning
    latents: Tensor
    step_index: int = 0

    @property
    def batch_key(self) -> BatchKey:
        """Samples of one resolution may share a batch, whatever else differs."""
        return self.request.width, self.request.height

    @property
    def num_steps(self) -> int:
        return self.request.sampling.num_inference_steps

    @property
    def guidance(self) -> float:
        """Of the next step."""
        return self.request.sampling.guidance_schedule[self.step_index]

    @property
    def is_finished(self) -> bool:
        return self.step_index == self.num_steps


@dataclass(eq=False, slots=True)
class RequestState:
    """One accepted request; `samples` is empty until its prompt is encoded."""

    request: EngineRequest
    samples: list[SampleState] = field(default_factory=list)
