"""Work queues: the work between which the scheduler divides device time."""

from bisect import insort
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from engine.request import BATCH_SHARE, Priority
from engine.runner.request_state import BatchKey, Phase, RequestState, SampleState


class QueueKey(NamedTuple):
    """A batch key and a priority. `suspect` is the id of a request in whose unit of work a worker died: it
    has a queue to itself."""

    batch_key: BatchKey
    priority: Priority
    suspect: str | None

    @classmethod
    def of(cls, state: RequestState) -> "QueueKey":
        suspect = state.request.request_id if state.request.is_suspect else None
        return cls(state.batch_key, state.priority, suspect)

    @property
    def other(self) -> "QueueKey":
        """The queue of the other priority whose samples may share a step."""
        return self._replace(priority="batch" if self.priority == "interactive" else "interactive")


@dataclass(eq=False, slots=True)
class WorkQueue:
    """Images that have a seat. Requests and running samples are in order of due time.

    `deficit` is the device time in seconds that the queue may spend. `delay` is the time in seconds that
    encodes and decodes have taken since the last step of its running samples.
    """

    key: QueueKey
    entering: list[RequestState] = field(default_factory=list)
    running: list[SampleState] = field(default_factory=list)
    finished: deque[SampleState] = field(default_factory=deque)
    deficit: float = 0.0
    delay: float = 0.0

    @property
    def has_work(self) -> bool:
        return bool(self.entering or self.running or self.finished)

    @property
    def next_entering(self) -> RequestState:
        """The request that is being encoded, or else the first one due."""
        encoding = (state for state in self.entering if state.phase is Phase.ENCODING)
        return next(encoding, self.entering[0])

    @property
    def share(self) -> float:
        """Quanta that the queue gets in each round."""
        return 1.0 if self.key.priority == "interactive" else BATCH_SHARE

    def enter(self, state: RequestState) -> None:
        """Add a request whose images got seats."""
        if state not in self.entering:
            insort(self.entering, state, key=lambda entering: entering.due)

    def join(self, samples: Iterable[SampleState]) -> None:
        """Add samples, finished or not."""
        if not self.running:
            self.delay = 0.0
        for sample in samples:
            if sample.is_finished:
                self.finished.append(sample)
            else:
                insort(self.running, sample, key=lambda running: running.state.due)

    def finish(self, sample: SampleState) -> None:
        self.running.remove(sample)
        self.finished.append(sample)

    def remove(self, state: RequestState) -> list[SampleState]:
        """Remove a request, and return its samples."""
        if state in self.entering:
            self.entering.remove(state)
        samples = [sample for sample in (*self.running, *self.finished) if sample.state is state]
        self.running = [sample for sample in self.running if sample.state is not state]
        self.finished = deque(sample for sample in self.finished if sample.state is not state)
        return samples
