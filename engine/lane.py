"""All work of one resolution, as the scheduler sees it."""

from collections import deque
from dataclasses import dataclass, field
from itertools import chain

from engine.request import BatchKey, RequestState, SampleState

# Of an interactive resolution's share, where all is priority `batch`.
BATCH_SHARE = 0.1


@dataclass(eq=False, slots=True)
class Lane:
    """All work of one resolution. `deficit` is the seconds of device time it is owed; `held_up` those that
    its running samples have waited for prompts and pictures since their last step."""

    key: BatchKey
    waiting: list[RequestState] = field(default_factory=list)
    running: list[SampleState] = field(default_factory=list)
    finished: deque[SampleState] = field(default_factory=deque)
    deficit: float = 0.0
    held_up: float = 0.0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running or self.finished)

    @property
    def next_waiting(self) -> RequestState:
        """The one being encoded, else the one due first."""
        return next((state for state in self.waiting if state.work), self.waiting[0])

    @property
    def share(self) -> float:
        """Of a quantum, each time its turn comes."""
        samples = chain(self.running, self.finished)
        requests = chain((state.request for state in self.waiting), (sample.request for sample in samples))
        return 1.0 if any(request.priority == "interactive" for request in requests) else BATCH_SHARE
