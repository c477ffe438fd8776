"""How many samples of a resolution may share a step."""

from engine.cost import CostModel
from engine.request import BatchKey

# Steps at the present limit before it grows by one again.
_RECOVERY_STEPS = 200


class BatchLimits:
    """From the cost model, lowered by half when memory ran out, and raised again slowly."""

    def __init__(self, cost: CostModel, max_batch_size: int) -> None:
        self._cost = cost
        self._max_batch_size = max_batch_size
        self._lowered: dict[BatchKey, int] = {}
        self._steps: dict[BatchKey, int] = {}

    def of(self, key: BatchKey) -> int:
        """At least 1."""
        limit = self._cost.batch_limit(self._cost.image_tokens(*key), self._max_batch_size)
        return min(limit, self._lowered.get(key, limit))

    def ran_out_of_memory(self, key: BatchKey, batch_size: int) -> None:
        """A batch of this size did not fit."""
        self._lowered[key] = max(1, batch_size // 2)
        self._steps[key] = 0

    def stepped(self, key: BatchKey) -> None:
        """A batch of the resolution went well."""
        if key not in self._lowered:
            return
        self._steps[key] += 1
        if self._steps[key] == _RECOVERY_STEPS:
            self._lowered[key] += 1
            self._steps[key] = 0
