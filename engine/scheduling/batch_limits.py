"""Batch limits: how many samples, prompts or images may share a unit of work."""

from collections.abc import Sequence

from engine.cost import CostModel, fitting
from engine.runner.request_state import BatchKey, RequestState, SampleState
from engine.scheduling.units import encode_length

# Full batches at a lowered limit before it is raised by one.
RECOVERY_STEPS = 200


class BatchLimits:
    """Token budgets from the cost model, and a number of samples per batch key.

    The number of samples is halved when memory runs out, and raised by one after RECOVERY_STEPS full batches.
    """

    def __init__(self, cost: CostModel) -> None:
        self._cost = cost
        self._lowered: dict[BatchKey, int] = {}
        self._full_steps: dict[BatchKey, int] = {}

    def fitting_steps(self, samples: Sequence[SampleState]) -> int:
        """How many of the first of these samples, which share a batch key, fit in a step; at least 1."""
        image_tokens = self._image_tokens(samples[0])
        first = samples[: self.samples(samples[0].batch_key)]
        lengths = (image_tokens + len(sample.request.token_ids) for sample in first)
        return fitting(lengths, self._cost.step_tokens(image_tokens))

    def fitting_encodes(self, requests: Sequence[RequestState]) -> int:
        """How many of the first of these requests fit in an encode of prompts or of sources; at least 1."""
        first = requests[: self.samples(requests[0].batch_key)]
        is_image = requests[0].next_encode == "encode_image"
        budget = self._cost.encode_image_tokens if is_image else self._cost.encode_tokens
        return fitting((encode_length(self._cost, state) for state in first), budget)

    def fitting_decodes(self, samples: Sequence[SampleState]) -> int:
        """How many of these samples, which share a batch key, fit in a decode; at least 1."""
        number = min(len(samples), self.samples(samples[0].batch_key))
        return fitting([self._image_tokens(samples[0])] * number, self._cost.decode_tokens)

    def _image_tokens(self, sample: SampleState) -> int:
        return self._cost.image_tokens(*sample.request.resolution)

    def samples(self, key: BatchKey) -> int:
        """The maximum number of samples in a unit of work, at least 1."""
        return self._lowered.get(key, self._cost.max_batch_size)

    def ran_out_of_memory(self, key: BatchKey, batch_size: int) -> None:
        """Lower the limit after a batch of this size ran out of memory."""
        self._lowered[key] = max(1, batch_size // 2)
        self._full_steps[key] = 0

    def stepped(self, key: BatchKey, batch_size: int) -> None:
        """Count a successful step. A smaller batch than the limit does not show that more would fit."""
        if batch_size < self._lowered.get(key, self._cost.max_batch_size + 1):
            return
        self._full_steps[key] += 1
        if self._full_steps[key] == RECOVERY_STEPS:
            self._lowered[key] += 1
            self._full_steps[key] = 0
        if self._lowered[key] >= self._cost.max_batch_size:
            del self._lowered[key]
