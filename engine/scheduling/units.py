"""Units of work, with the seconds that the cost model predicts for each."""

from dataclasses import dataclass
from typing import ClassVar

from engine.cost import CostModel
from engine.messages import UnitKind
from engine.request import EngineRequest
from engine.runner.request_state import Phase, RequestState, SampleState


@dataclass(frozen=True, slots=True)
class Encode:
    """Run the text encoder on a request's prompt for `slice_seconds`; once done, start its entering images.

    `seconds` are predicted for this slice, `whole_seconds` for the whole prompt.
    """

    request: RequestState
    seconds: float
    whole_seconds: float
    slice_seconds: float
    kind: ClassVar[UnitKind] = "encode"

    @property
    def request_ids(self) -> tuple[str, ...]:
        return (self.request.request.request_id,)

    @classmethod
    def predict(cls, cost: CostModel, state: RequestState, slice_seconds: float) -> "Encode":
        slice_seconds = min(slice_seconds, _own_step(cost, state.request))
        is_encoded = state.phase is Phase.ENCODED
        whole = 0.0 if is_encoded else cost.encode.seconds([len(state.request.token_ids)])
        return cls(state, min(whole, slice_seconds), whole, slice_seconds)


@dataclass(frozen=True, slots=True)
class Denoise:
    """Advance these samples, which share a batch key, by one step."""

    samples: list[SampleState]
    seconds: float
    kind: ClassVar[UnitKind] = "denoise"

    @property
    def request_ids(self) -> tuple[str, ...]:
        return tuple(sample.request.request_id for sample in self.samples)

    @classmethod
    def predict(cls, cost: CostModel, samples: list[SampleState]) -> "Denoise":
        lens = [len(sample.request.token_ids) for sample in samples]
        guided = sum(sample.guidance != 1 for sample in samples)
        return cls(samples, cost.step_seconds(_image_tokens(cost, samples[0].request), lens, guided))


@dataclass(frozen=True, slots=True)
class Decode:
    """Run the VAE on a finished sample for `slice_seconds`.

    `seconds` are predicted for this slice, `whole_seconds` for the whole image.
    """

    sample: SampleState
    seconds: float
    whole_seconds: float
    slice_seconds: float
    kind: ClassVar[UnitKind] = "decode"

    @property
    def request_ids(self) -> tuple[str, ...]:
        return (self.sample.request.request_id,)

    @classmethod
    def predict(cls, cost: CostModel, sample: SampleState, slice_seconds: float) -> "Decode":
        slice_seconds = min(slice_seconds, _own_step(cost, sample.request))
        whole = cost.decode.seconds([_image_tokens(cost, sample.request)])
        return cls(sample, min(whole, slice_seconds), whole, slice_seconds)


Unit = Encode | Denoise | Decode


def _own_step(cost: CostModel, request: EngineRequest) -> float:
    """Seconds of a step of one image: the longest slice."""
    return cost.step_seconds(_image_tokens(cost, request), [len(request.token_ids)], 1)


def _image_tokens(cost: CostModel, request: EngineRequest) -> int:
    return cost.image_tokens(*request.resolution)
