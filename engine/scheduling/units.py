"""Units of work, with the seconds that the cost model predicts for each.

`states` has the request of each member: of a prompt, or of a sample.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from engine.cost import CostModel
from engine.messages import UnitKind
from engine.request import EngineRequest
from engine.runner.request_state import RequestState, SampleState


@dataclass(frozen=True, slots=True)
class Encode:
    """Run the text encoder on these requests' prompts, or the VAE's encoder on their sources, for
    `slice_seconds`; once all is encoded, start their entering images. `seconds` are predicted for this slice.
    """

    requests: list[RequestState]
    seconds: float
    slice_seconds: float
    kind: Literal["encode", "encode_image"]

    @property
    def states(self) -> list[RequestState]:
        return self.requests

    @classmethod
    def predict(cls, cost: CostModel, requests: list[RequestState], slice_seconds: float) -> "Encode":
        slice_seconds = min(slice_seconds, _own_step(cost, requests[0].request))
        kind = requests[0].next_encode
        lens = [encode_length(cost, state) for state in requests]
        whole = cost.of(kind).seconds(lens) if kind else 0.0
        return cls(requests, min(whole, slice_seconds), slice_seconds, kind or "encode")


@dataclass(frozen=True, slots=True)
class Denoise:
    """Advance these samples, which share a batch key, by one step."""

    samples: list[SampleState]
    seconds: float
    kind: ClassVar[UnitKind] = "denoise"

    @property
    def states(self) -> list[RequestState]:
        return [sample.state for sample in self.samples]

    @classmethod
    def predict(cls, cost: CostModel, samples: list[SampleState]) -> "Denoise":
        lens = [len(sample.request.token_ids) for sample in samples]
        guided = sum(sample.guidance != 1 for sample in samples)
        return cls(samples, cost.step_seconds(_image_tokens(cost, samples[0].request), lens, guided))


@dataclass(frozen=True, slots=True)
class Decode:
    """Run the VAE on these finished samples, which share a batch key, for `slice_seconds`. `seconds` are
    predicted for this slice."""

    samples: list[SampleState]
    seconds: float
    slice_seconds: float
    kind: ClassVar[Literal["decode"]] = "decode"

    @property
    def states(self) -> list[RequestState]:
        return [sample.state for sample in self.samples]

    @classmethod
    def predict(cls, cost: CostModel, samples: list[SampleState], slice_seconds: float) -> "Decode":
        slice_seconds = min(slice_seconds, _own_step(cost, samples[0].request))
        whole = cost.decode.seconds([_image_tokens(cost, sample.request) for sample in samples])
        return cls(samples, min(whole, slice_seconds), slice_seconds)


Unit = Encode | Denoise | Decode


def request_ids(unit: Unit) -> tuple[str, ...]:
    """The request id of each member."""
    return tuple(state.request.request_id for state in unit.states)


def encode_length(cost: CostModel, state: RequestState) -> int:
    """Tokens of the prompt or source that the request encodes next."""
    is_image = state.next_encode == "encode_image"
    return _image_tokens(cost, state.request) if is_image else len(state.request.token_ids)


def _own_step(cost: CostModel, request: EngineRequest) -> float:
    """Seconds of a step of one image: the longest slice."""
    return cost.step_seconds(_image_tokens(cost, request), [len(request.token_ids)], 1)


def _image_tokens(cost: CostModel, request: EngineRequest) -> int:
    return cost.image_tokens(*request.resolution)
