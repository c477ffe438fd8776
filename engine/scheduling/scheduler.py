"""The scheduler: chooses the next unit of work. Plain Python without tensors or a clock.

Between work queues (one per batch key and priority): deficit round robin by predicted seconds, in which a
`batch` queue gets a tenth of an `interactive` queue's share. Within a queue: earliest virtual due time first.
A request is due at `submitted + STRETCH * its own predicted cost`, so short requests pass long ones that
arrived slightly earlier, equal ones run in order of arrival, and none waits forever.
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

# Target ratio of a request's latency to its own cost; beyond it, the request precedes newer ones.
STRETCH = 5.0


class Scheduler:
    """Requests wait for seats and are encoded, then their samples run, then finished samples are decoded.

    Bound: between two units of an `interactive` queue, each other queue spends at most two quanta, and
    between two units of a `batch` queue at most twelve, whatever requests arrive or leave. A quantum is the
    greatest predicted cost among the candidates in that time.
    """

    def __init__(self, cost: CostModel, limits: BatchLimits, max_running: int) -> None:
        self.cost = cost
        self._compiles = False
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
        """The number of samples in memory."""
        return sum(len(queue.running) + len(queue.finished) for queue in self._order)

    @property
    def adapters_in_use(self) -> set[str]:
        """Digests of the adapters of all requests."""
        return {use.digest for state in self._requests.values() for use in state.request.adapters}

    def recalibrate(self, cost: CostModel) -> None:
        """Replace the cost model. Requests keep their due times."""
        self.cost = cost

    def use_compiled_blocks(self) -> None:
        """Run requests in compiled blocks that get their first seat from now on, except those with adapters,
        for which these are not compiled."""
        self._compiles = True

    def add(self, request: EngineRequest) -> RequestState:
        """Queue a request."""
        seconds = self.cost.request_seconds(request)
        due = request.submitted + STRETCH * seconds
        state = RequestState(request, due, image_seconds=seconds / len(request.seeds))
        self._requests[request.request_id] = state
        self._seats.add(state)
        return state

    def remove(self, request_id: str) -> None:
        """Remove a request that is done, failed or aborted. An unknown id is ignored."""
        state = self._requests.pop(request_id, None)
        if state is not None:
            state.is_removed = True
            self._seats.remove(state)
            self._leave(state)

    def promote(self, request_id: str, priority: Priority) -> None:
        """Change the priority of a request in any phase. An unknown id is ignored."""
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
        """The request is encoded: these samples, of its entering images, join the next step."""
        state.entering.clear()
        queue = self._queue_of(state)
        queue.entering.remove(state)
        queue.join(samples)

    def stepped(self, samples: list[SampleState]) -> None:
        """The samples have taken a step together. After its last step a sample waits to be decoded."""
        self._limits.stepped(samples[0].batch_key, len(samples))
        for sample in samples:
            if sample.is_finished:
                self._queue_of(sample.state).finish(sample)

    def ran_out_of_memory(self, states: list[RequestState]) -> None:
        """A batch with members of these requests, each as often as it has members, ran out of memory."""
        self._limits.ran_out_of_memory(states[0].batch_key, len(states))

    def delayed(self, state: RequestState, seconds: float) -> None:
        """An encode or decode of the request took `seconds`, which delayed the running samples of its
        queue."""
        self._queue_of(state).delay += seconds

    def decoded(self, sample: SampleState) -> None:
        """The sample is decoded."""
        self._seats.release(sample.state)
        queue = self._queue_of(sample.state)
        queue.finished.remove(sample)
        self._drop_if_empty(queue)

    def candidates(self) -> dict[QueueKey, Unit]:
        """Grant the free seats, and return the unit that each queue would run now."""
        for state in self._seats.grant():
            if state.has_first_seat:
                state.is_compiled = self._compiles and not state.request.adapters
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
            # Deficit beyond that was saved for a more expensive unit that is gone.
            queue.deficit = min(queue.deficit, 2 * quantum)
            if units[queue.key].seconds <= queue.deficit:
                return self._take(queue, units)
            self._order.rotate(-1)
            self._turn = None

    def _take(self, queue: WorkQueue, units: Mapping[QueueKey, Unit]) -> Unit:
        unit = units[queue.key]
        queue.deficit -= unit.seconds
        if isinstance(unit, Denoise):
            queue.delay = 0.0
            return self._fill(unit, units.get(queue.key.other))
        return unit

    def _fill(self, step: Denoise, other: Unit | None) -> Denoise:
        """Add samples of the other priority to a step, as far as the batch limits and the deficit of their
        queue allow. They are charged the seconds that they add."""
        if not isinstance(other, Denoise):
            return step
        queue = self._queue_of(other.samples[0].state)
        together = [*step.samples, *other.samples]
        for size in range(len(step.samples) + 1, self._limits.fitting_steps(together) + 1):
            longer = Denoise.predict(self.cost, together[:size])
            added = longer.seconds - step.seconds
            if added > queue.deficit:
                break
            step, queue.deficit, queue.delay = longer, queue.deficit - added, 0.0
        return step

    def _peek(self, queue: WorkQueue, step: Denoise | None, shortest: float) -> Unit:
        """Decode first, then encode; but step once they have delayed the queue's running samples by a step,
        or while an encode waits for offloaded weights.

        A slice is no longer than the shortest candidate step of any queue, nor than what is left of that
        delay.
        """
        if step is None:
            slice_seconds = shortest
        elif queue.delay < step.seconds:
            slice_seconds = min(shortest, step.seconds - queue.delay)
        else:
            return step
        if queue.finished:
            samples = queue.next_decodes(self._limits.fitting_decodes)
            return Decode.predict(self.cost, samples, slice_seconds)
        if step is None or queue.entering:
            requests = queue.next_encodes(self._limits.fitting_encodes)
            if step and _is_waiting(requests[0]):
                return step
            return Encode.predict(self.cost, requests, slice_seconds)
        return step

    def _step(self, queue: WorkQueue) -> Denoise:
        return Denoise.predict(self.cost, queue.next_steps(self._limits.fitting_steps))

    def _queue_of(self, state: RequestState) -> WorkQueue:
        key = QueueKey.of(state)
        if key not in self._queues:
            self._queues[key] = WorkQueue(key)
            self._order.append(self._queues[key])
        return self._queues[key]

    def _leave(self, state: RequestState) -> list[SampleState]:
        """Remove the request from its queue, and return its samples."""
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


def _is_waiting(request: RequestState) -> bool:
    """Whether the encode of a request has begun and waits."""
    return request.task is not None and request.task.work.is_waiting()
