"""State of the work in flight; the model itself keeps none."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.models.resumable import ResumableTask
from engine.request import EngineRequest, Priority

if TYPE_CHECKING:  # the scheduler and its tests handle states without torch
    from torch import Tensor

    from engine.models.dit import Modulation

BatchKey = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What a request's steps share. `times` (steps + 1,) float64; `text` (L, D) projected prompt tokens.

    The modulations hold every step of the schedule; `unconditional` is None if no step is guided.
    """

    text: "Tensor"
    times: "Tensor"
    conditional: "Modulation"
    unconditional: "Modulation | None"


@dataclass(frozen=True, slots=True)
class Preview:
    """A small picture, `width` x `height` x 3 bytes of RGB, row-major."""

    width: int
    height: int
    rgb: bytes


@dataclass(eq=False, slots=True)
class RequestState:
    """One accepted request. `due` orders it among those of its priority; `image_seconds` are predicted.

    Its images are `unseated`, then `entering` (they have a seat and are not started), then samples; both
    are image indices. `images_left` are not done. `work` is an encode under way; `times` are seconds of
    device time by stage; `started` when its first unit ran.
    """

    request: EngineRequest
    due: float = 0.0
    image_seconds: float = 0.0
    unseated: list[int] = field(init=False)
    entering: list[int] = field(default_factory=list)
    images_left: int = field(init=False)
    work: ResumableTask[Conditioning] | None = None
    conditioning: Conditioning | None = None
    started: float = 0.0
    is_failed: bool = False
    times: dict[str, float] = field(default_factory=lambda: {"encode": 0.0, "denoise": 0.0, "decode": 0.0})

    def __post_init__(self) -> None:
        self.unseated = [i for i in range(len(self.request.seeds)) if i not in self.request.skip]
        self.images_left = len(self.unseated)

    @property
    def batch_key(self) -> BatchKey:
        """Samples of one resolution may share a batch, whatever else differs."""
        return self.request.width, self.request.height

    @property
    def priority(self) -> Priority:
        return self.request.priority

    @property
    def is_encoded(self) -> bool:
        return self.conditioning is not None

    @property
    def num_seats(self) -> int:
        """Of its images that are entering, running or finished."""
        return self.images_left - len(self.unseated)


@dataclass(eq=False, slots=True)
class SampleState:
    """One image on its way: `latents` (N, C) float32 after `step_index` steps.

    `clean` is the predicted end of it, kept only where a preview is due; `work` a decode under way.
    """

    state: RequestState
    image_index: int
    latents: "Tensor"
    step_index: int = 0
    clean: "Tensor | None" = None
    work: ResumableTask[bytes] | None = None

    @property
    def request(self) -> EngineRequest:
        return self.state.request

    @property
    def batch_key(self) -> BatchKey:
        return self.state.batch_key

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

    @property
    def preview_due(self) -> int | None:
        """The index of the preview to send after the step just taken: they are spread evenly."""
        return self._preview_at(self.step_index)

    @property
    def is_preview_next(self) -> bool:
        """Whether one is due after the next step."""
        return self._preview_at(self.step_index + 1) is not None

    def _preview_at(self, step_index: int) -> int | None:
        previews = self.request.num_previews
        for index in range(previews):
            if step_index == max(1, (index + 1) * self.num_steps // (previews + 1)):
                return index
        return None
