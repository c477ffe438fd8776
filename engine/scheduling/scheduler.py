"""Which unit of work runs next: plain Python, no tensors, no clock.

Between queues, which are a resolution and a priority each: deficit round robin by predicted cost, where
`batch` has a tenth of an interactive queue's share. Within one: earliest virtual due time first, where a
request is due at `submitted + STRETCH * its cost alone`; so a short request passes a long one that came
little earlier, equal ones run in order of arrival, and none waits for ever.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import replace

from engine.cost import CostModel
from engine.request import EngineRequest, Priority
from engine.runner.request_state import RequestState, SampleState
from engine.scheduling.batch_limits import BatchLimits
from engine.scheduling.seats import Seats
from engine.scheduling.units import Decode, Denoise, Encode, Unit
from engine.scheduling.work_queue import QueueKey, WorkQueue

# How many times its own cost a request may take before it goes first.
STRETCH = 5.0


class Scheduler:
    """Requests wait for seats, are encoded, their samples run, finished samples are decoded.

    Bound: between two units of an interactive queue, each other queue spends at most two quanta, between two
    of a `batch` queue at most twelve; whatever comes and goes meanwhile. A quantum is the greatest predicted
    cost of a unit at hand in that time.
    """

    def __init__(self, cost: CostModel, limits: BatchLimits, max_running: int) -> None:
        self.cost = cost
        self._limits = limits
        self._seats = Seats(max_running)
        self._requests: dict[str, RequestState] = {}
        self._queues: dict[QueueKey, WorkQueue] = {}  # those with work
        self._order: deque[WorkQueue] = deque()
        self._turn: WorkQueue | None = None

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    @property
    def num_running(self) -> int:
        """Samples in memory."""
        return sum(len(queue.running) + len(queue.finished) for queue in self._order)

    def add(self, request: EngineRequest) -> RequestState:
        """Queue a request."""
        seconds = self.cost.request_seconds(request)
        due = request.submitted + STRETCH * seconds
        state = RequestState(request, due, image_seconds=seconds / len(request.seeds))
        self._requests[request.request_id] = state
        self._seats.add(state)
        return state

    def remove(self, request_id: str) -> None:
        """Forget a request wherever it is: done, failed or aborted. An unknown id is ignored."""
        state = self._requests.pop(request_id, None)
        if state is not None:
            self._seats.remove(state)
            self._leave(state)

    def promote(self, request_id: str, priority: Priority) -> None:
        """Change the priority of a request wherever it is. An unknown id is ignored."""
        state = self._requests.get(request_id)
        if state is None:
            return
        self._seats.remove(state)
        samples = self._leave(state)
        state.request = replace(state.request, priority=priority)
        self._seats.add(state)
        if state.entering:
            self._queue_of(state).enter(state)
        if samples:
            self._queue_of(state).join(samples)

    def started(self, state: RequestState, samples: list[SampleState]) -> None:
        """The request's prompt is encoded: these samples of its `entering` images join the next step."""
        state.entering.clear()
        queue = self._queue_of(state)
        queue.entered(state)
        queue.join(samples)

    def stepped(self, samples: list[SampleState]) -> None:
        """The samples have taken a step together; after its last one a sample waits to be decoded."""
        self._limits.stepped(samples[0].batch_key, len(samples))
        for sample in samples:
            if sample.is_finished:
                self._queue_of(sample.state).finish(sample)

    def ran_out_of_memory(self, samples: list[SampleState]) -> None:
        """The samples did not fit in one step."""
        self._limits.ran_out_of_memory(samples[0].batch_key, len(samples))

    def held_up(self, state: RequestState, seconds: float) -> None:
        """For so long it was encoded or decoded, and samples of its queue may have waited."""
        self._queue_of(state).held_up += seconds

    def decoded(self, sample: SampleState) -> None:
        """The sample's pixels are out."""
        self._seats.release(sample.state)
        queue = self._queue_of(sample.state)
        queue.finished.remove(sample)
        self._drop_if_empty(queue)

    def candidates(self) -> dict[QueueKey, Unit]:
        """What each queue would run now, once the free seats are given away."""
        for state in self._seats.grant():
            self._queue_of(state).enter(state)
        steps = {queue: self._step(queue) for queue in self._order if queue.running}
        shortest = min((step.seconds for step in steps.values()), default=math.inf)
        return {queue.key: self._peek(queue, steps.get(queue), shortest) for queue in self._order}

    def next_unit(self) -> Unit | None:
        """The next unit of work, or None if there is none."""
        units = self.candidates()
        if not units:
            return None
        quantum = max(unit.seconds for unit in units.values())
        while True:
            queue = self._order[0]
            if queue is not self._turn:
                self._turn = queue
                queue.deficit += quantum * queue.share
            queue.deficit = min(queue.deficit, 2 * quantum)  # the rest was for a unit that is gone
            if units[queue.key].seconds <= queue.deficit:
                return self._take(queue, units)
            self._order.rotate(-1)
            self._turn = None

    def _take(self, queue: WorkQueue, units: Mapping[QueueKey, Unit]) -> Unit:
        unit = units[queue.key]
        queue.deficit -= unit.seconds
        match unit:
            case Encode(state):
                queue.encoding = state
            case Denoise():
                queue.held_up = 0.0
                return self._fill(unit, units.get(queue.key.other))
        return unit

    def _fill(self, step: Denoise, other: Unit | None) -> Denoise:
        """Samples of the other priority take what is left of the step while their queue can pay for what
        they add to it."""
        if not isinstance(other, Denoise):
            return step
        queue = self._queue_of(other.samples[0].state)
        together = [*step.samples, *other.samples]
        for size in range(len(step.samples) + 1, self._limits.fitting(together) + 1):
            longer = Denoise.predict(self.cost, together[:size])
            added = longer.seconds - step.seconds
            if added > queue.deficit:
                break
            step, queue.deficit, queue.held_up = longer, queue.deficit - added, 0.0
        return step

    def _peek(self, queue: WorkQueue, step: Denoise | None, shortest: float) -> Unit:
        """Decode before encode, and while any sample runs a step once they took as long as one.

        Both run for no longer than the shortest step that waits, in their own queue less what that was held
        up already.
        """
        if step is None:
            slice_seconds = shortest
        elif queue.held_up < step.seconds:
            slice_seconds = min(shortest, step.seconds - queue.held_up)
        else:
            return step
        if queue.finished:
            return Decode.predict(self.cost, queue.finished[0], slice_seconds)
        if step is None or queue.entering:
            return Encode.predict(self.cost, queue.next_entering, slice_seconds)
        return step

    def _step(self, queue: WorkQueue) -> Denoise:
        """The samples due first; of a request that its worker died on one at a time."""
        size = 1 if queue.key.suspect else self._limits.fitting(queue.running)
        return Denoise.predict(self.cost, queue.running[:size])

    def _queue_of(self, state: RequestState) -> WorkQueue:
        key = QueueKey.of(state)
        if key not in self._queues:
            self._queues[key] = WorkQueue(key)
            self._order.append(self._queues[key])
        return self._queues[key]

    def _leave(self, state: RequestState) -> list[SampleState]:
        """Take the request out of its queue; its samples."""
        queue = self._queues.get(QueueKey.of(state))
        if queue is None:
            return []
        samples = queue.remove(state)
        self._drop_if_empty(queue)
        return samples

    def _drop_if_empty(self, queue: WorkQueue) -> None:
        if not queue.has_work:
            del self._queues[queue.key]
            self._order.remove(queue)
