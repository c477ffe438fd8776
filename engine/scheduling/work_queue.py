"""Work queues: the work between which the scheduler divides device time."""

from bisect import insort
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from engine.cost import TaskKind
from engine.request import BATCH_SHARE, Priority
from engine.runner.request_state import BatchKey, RequestState, SampleState

M = TypeVar("M", RequestState, SampleState)
# How many of the first of these may share a unit of work.
Limit = Callable[[Sequence[M]], int]


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

    def next_encodes(self, limit: Limit[RequestState]) -> list[RequestState]:
        """Entering requests whose prompts, or whose sources, to encode together."""
        return self._next_task(self.entering, lambda state: state.next_encode, limit)

    def next_decodes(self, limit: Limit[SampleState]) -> list[SampleState]:
        """Finished samples to decode together."""
        return self._next_task(self.finished, lambda _: "decode", limit)

    def next_steps(self, limit: Limit[SampleState]) -> list[SampleState]:
        """Running samples to step together: those due first."""
        return self._first(self.running, limit)

    def _next_task(
        self, waiting: Iterable[M], kind: Callable[[M], TaskKind | None], limit: Limit[M]
    ) -> list[M]:
        """The members of the task that has begun, else those that may share one with the first: of its kind.
        Kind None: nothing is left to compute."""
        first = next((each for each in waiting if each.task), next(iter(waiting)))
        if first.task:
            return [each for each in waiting if each.task is first.task]
        if first.must_run_alone or kind(first) is None:
            return [first]
        sharing = (each for each in waiting if kind(each) == kind(first) and not each.must_run_alone)
        return self._first(list(sharing), limit)

    def _first(self, waiting: Sequence[M], limit: Limit[M]) -> list[M]:
        """Of a suspect, one at a time."""
        return list(waiting[: 1 if self.key.suspect else limit(waiting)])

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
