"""Batch limits: how many samples may share a step."""

from collections.abc import Sequence
from itertools import accumulate, takewhile

from engine.cost import CostModel
from engine.runner.request_state import BatchKey, SampleState

# Full batches at a lowered limit before it is raised by one.
RECOVERY_STEPS = 200


class BatchLimits:
    """A token budget from the cost model, and a number of samples per batch key.

    The number of samples is halved when memory runs out, and raised by one after RECOVERY_STEPS full batches.
    """

    def __init__(self, cost: CostModel, max_batch_size: int, max_batch_tokens: int) -> None:
        self._cost = cost
        self._max_batch_size = max_batch_size
        self._max_batch_tokens = max_batch_tokens
        self._lowered: dict[BatchKey, int] = {}
        self._full_steps: dict[BatchKey, int] = {}

    def fitting(self, samples: Sequence[SampleState]) -> int:
        """How many of the first of these samples, which share a batch key, fit in a step; at least 1."""
        image_tokens = self._cost.image_tokens(*samples[0].request.resolution)
        budget = min(self._cost.batch_tokens(image_tokens), self._max_batch_tokens)
        first = samples[: self.samples(samples[0].batch_key)]
        totals = accumulate(image_tokens + len(sample.request.token_ids) for sample in first)
        return max(1, sum(1 for _ in takewhile(lambda total: total <= budget, totals)))

    def samples(self, key: BatchKey) -> int:
        """The maximum number of samples in a step, at least 1."""
        return self._lowered.get(key, self._max_batch_size)

    def ran_out_of_memory(self, key: BatchKey, batch_size: int) -> None:
        """Lower the limit after a batch of this size ran out of memory."""
        self._lowered[key] = max(1, batch_size // 2)
        self._full_steps[key] = 0

    def stepped(self, key: BatchKey, batch_size: int) -> None:
        """Count a successful step. A smaller batch than the limit does not show that more would fit."""
        if batch_size < self._lowered.get(key, self._max_batch_size + 1):
            return
        self._full_steps[key] += 1
        if self._full_steps[key] == RECOVERY_STEPS:
            self._lowered[key] += 1
            self._full_steps[key] = 0
        if self._lowered[key] >= self._max_batch_size:
            del self._lowered[key]
