"""Work that takes its turn together, as the scheduler sees it."""

from bisect import insort
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from engine.request import Priority
from engine.runner.request_state import BatchKey, RequestState, SampleState
from engine.scheduling.seats import BATCH_SHARE


class QueueKey(NamedTuple):
    """A resolution and a priority. `suspect` is the id of a request that a worker died on: it is alone."""

    batch_key: BatchKey
    priority: Priority
    suspect: str | None

    @classmethod
    def of(cls, state: RequestState) -> "QueueKey":
        suspect = state.request.request_id if state.request.is_suspect else None
        return cls(state.batch_key, state.priority, suspect)

    @property
    def other(self) -> "QueueKey":
        """The other priority of the same resolution."""
        return self._replace(priority="batch" if self.priority == "interactive" else "interactive")


@dataclass(eq=False, slots=True)
class WorkQueue:
    """Images with a seat; requests and running samples in order of their due times.

    `encoding` is the one of the `entering` requests whose prompt is being encoded. `deficit` is the seconds
    of device time that the queue may spend; `held_up` those that its running samples have waited for prompts
    and pictures since their last step.
    """

    key: QueueKey
    entering: list[RequestState] = field(default_factory=list)
    encoding: RequestState | None = None
    running: list[SampleState] = field(default_factory=list)
    finished: deque[SampleState] = field(default_factory=deque)
    deficit: float = 0.0
    held_up: float = 0.0

    @property
    def has_work(self) -> bool:
        return bool(self.entering or self.running or self.finished)

    @property
    def next_entering(self) -> RequestState:
        return self.encoding or self.entering[0]

    @property
    def share(self) -> float:
        """Of a quantum, each time its turn comes."""
        return 1.0 if self.key.priority == "interactive" else BATCH_SHARE

    def enter(self, state: RequestState) -> None:
        """Queue a request whose images got seats."""
        if state not in self.entering:
            insort(self.entering, state, key=lambda entering: entering.due)

    def entered(self, state: RequestState) -> None:
        self.entering.remove(state)
        self.encoding = None if self.encoding is state else self.encoding

    def join(self, samples: Iterable[SampleState]) -> None:
        """Add samples, finished or not."""
        if not self.running:
            self.held_up = 0.0
        for sample in samples:
            if sample.is_finished:
                self.finished.append(sample)
            else:
                insort(self.running, sample, key=lambda running: running.state.due)

    def finish(self, sample: SampleState) -> None:
        self.running.remove(sample)
        self.finished.append(sample)

    def remove(self, state: RequestState) -> list[SampleState]:
        """Take a request out; its samples."""
        if state in self.entering:
            self.entered(state)
        samples = [sample for sample in (*self.running, *self.finished) if sample.state is state]
        self.running = [sample for sample in self.running if sample.state is not state]
        self.finished = deque(sample for sample in self.finished if sample.state is not state)
        return samples
