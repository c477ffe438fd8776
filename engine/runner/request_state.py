"""State of requests and samples in the worker. The model itself is stateless."""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Literal, TypeVar, Union

from engine.messages import StageTimes, UnitKind
from engine.models.resumable import ResumableTask
from engine.request import EngineRequest, Priority

if TYPE_CHECKING:  # the scheduler and its tests handle states without torch
    from torch import Tensor

    from engine.adapters.passes import Adapters
    from engine.models.dit import Modulation
    from engine.runner.sampling import EncodedSource, Known

# Samples with equal keys may share a step. Only `RequestState.batch_key` knows what a key consists of.
BatchKey = Hashable


M = TypeVar("M")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Conditioning:
    """Inputs that all steps of a request share.

    `times` (steps + 1,) float64; `text` (L, D) projected prompt tokens. The modulations cover every step of
    the schedule; `unconditional` is None if no step is guided. `adapters` are those of the request.
    """

    text: "Tensor"
    times: "Tensor"
    conditional: "Modulation"
    unconditional: "Modulation | None"
    adapters: "Adapters" = ()


@dataclass(frozen=True, slots=True)
class Preview:
    """A small image, `width` x `height` x 3 bytes of RGB, row-major."""

    width: int
    height: int
    rgb: bytes


@dataclass(frozen=True, eq=False, slots=True)
class BatchTask(Generic[M, T]):
    """An encode or decode of several members, with one result for each, that runs in slices.

    `states` are the members' requests, and `lengths` the tokens of each prompt or image that it computes.
    """

    members: "list[M]"
    states: "list[RequestState]"
    lengths: list[int]
    work: ResumableTask[Sequence[T]]

    def pair(self, results: Sequence[T]) -> Iterator[tuple[M, T]]:
        """The members with their results, without those whose requests are removed, also meanwhile."""
        for member, state, result in zip(self.members, self.states, results, strict=True):
            if not state.is_removed:
                yield member, result


@dataclass(eq=False, slots=True)
class RequestState:
    """A request in the worker. `due` orders it among requests of its priority.

    `image_seconds` are predicted for each image. Image indices are first in `unseated`, then in `entering`
    (with a seat, without a sample); then each has a SampleState. `images_left` counts images not yet decoded.
    `task` is the encode of its prompt, then of its `source`, once that has begun; if it failed in a batch,
    it `must_run_alone`. `times` are seconds of device time by stage, and `started` is when the first unit of
    work began. All images of a request that `is_compiled` run in compiled blocks, which round differently.
    """

    request: EngineRequest
    due: float = 0.0
    image_seconds: float = 0.0
    unseated: list[int] = field(init=False)
    entering: list[int] = field(default_factory=list)
    images_left: int = field(init=False)
    task: "EncodeTask | None" = None
    must_run_alone: bool = False
    conditioning: Conditioning | None = None
    source: "EncodedSource | None" = None
    started: float = 0.0
    is_removed: bool = False
    is_compiled: bool = False
    times: dict[str, float] = field(default_factory=lambda: {"encode": 0.0, "denoise": 0.0, "decode": 0.0})

    def __post_init__(self) -> None:
        self.unseated = [i for i in range(len(self.request.seeds)) if i not in self.request.skip]
        self.images_left = len(self.unseated)

    @property
    def batch_key(self) -> BatchKey:
        """Equal for requests whose samples may share a step: those of one resolution, compiled or not."""
        resolution = self.request.resolution
        return (resolution, "compiled") if self.is_compiled else resolution

    @property
    def priority(self) -> Priority:
        return self.request.priority

    @property
    def num_seats(self) -> int:
        """Seats that its images hold."""
        return self.images_left - len(self.unseated)

    @property
    def conditioned(self) -> Conditioning:
        """The conditioning, once the prompt is encoded."""
        assert self.conditioning is not None, "the prompt is not encoded"
        return self.conditioning

    @property
    def stage_times(self) -> StageTimes:
        return StageTimes(queue=self.started - self.request.submitted, **self.times)

    @property
    def has_first_seat(self) -> bool:
        """Whether the seat that it was just granted is its first: nothing of it has run."""
        return self.task is None and not self.is_encoded and len(self.entering) == 1

    @property
    def is_encoded(self) -> bool:
        """Whether its prompt is encoded."""
        return self.conditioning is not None

    @property
    def next_encode(self) -> Literal["encode", "encode_image"] | None:
        """What must be encoded before its images can start: the prompt, then the source; None: nothing."""
        if not self.is_encoded:
            return "encode"
        return "encode_image" if self.source is None and self.request.encodes_source else None

    def encoded(self, result: "Encoded") -> None:
        """Keep the result of its task."""
        self.task = None
        if isinstance(result, Conditioning):
            self.conditioning = result
        else:
            self.source = result


@dataclass(eq=False, slots=True)
class SampleState:
    """One image in progress: `latents` (N, C) float32 before step `step_index` of the schedule.

    `clean` is the predicted final image, kept only when a preview is due. `known` is what a mask keeps of a
    source. `task` is its decode, once that has begun; if it failed in a batch, it `must_run_alone`.
    """

    state: RequestState
    image_index: int
    latents: "Tensor"
    known: "Known | None" = None
    step_index: int = field(init=False)
    clean: "Tensor | None" = None
    task: "DecodeTask | None" = None
    must_run_alone: bool = False

    def __post_init__(self) -> None:
        self.step_index = self.request.first_step

    @property
    def request(self) -> EngineRequest:
        return self.state.request

    @property
    def batch_key(self) -> BatchKey:
        return self.state.batch_key

    @property
    def num_steps(self) -> int:
        """Steps that run; a source lets it start late in the schedule."""
        return self.request.num_steps

    @property
    def steps_done(self) -> int:
        return self.step_index - self.request.first_step

    @property
    def times(self) -> "Tensor":
        """Start and end time of the next step, (2,)."""
        return self.state.conditioned.times[self.step_index : self.step_index + 2]

    @property
    def guidance(self) -> float:
        """Guidance scale of the next step."""
        return self.request.sampling.guidance_schedule[self.step_index]

    @property
    def is_finished(self) -> bool:
        """Whether all steps are done, so that the image can be decoded."""
        return self.steps_done == self.num_steps

    @property
    def preview_due(self) -> int | None:
        """Index of the preview to send after the latest step, if any. Previews are spread evenly over the
        steps."""
        return self._preview_at(self.steps_done)

    @property
    def is_preview_next(self) -> bool:
        """Whether a preview is due after the next step."""
        return self._preview_at(self.steps_done + 1) is not None

    def _preview_at(self, steps_done: int) -> int | None:
        previews = self.request.num_previews
        for index in range(previews):
            if steps_done == max(1, (index + 1) * self.num_steps // (previews + 1)):
                return index
        return None


def add_times(states: Iterable[RequestState], kind: UnitKind, seconds: float) -> None:
    """Add the seconds of a unit to its requests; several members of a request count once."""
    stage = "encode" if kind == "encode_image" else kind
    for state in dict.fromkeys(states):
        state.times[stage] += seconds


Encoded = Union[Conditioning, "EncodedSource"]
EncodeTask = BatchTask[RequestState, Encoded]
DecodeTask = BatchTask[SampleState, bytes | FloatingPointError]
