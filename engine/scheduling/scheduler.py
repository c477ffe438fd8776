"""Which unit of work runs next: plain Python, no tensors, no clock.

Between lanes, which are a resolution and a priority each: deficit round robin by predicted cost, where
`batch` has a tenth of an interactive lane's share. Within one: earliest virtual due time first, where a
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
from engine.scheduling.lane import Lane, LaneKey
from engine.scheduling.seats import Seats
from engine.scheduling.units import Decode, Denoise, Encode, Unit

# How many times its own cost a request may take before it goes first.
STRETCH = 5.0


class Scheduler:
    """Requests wait for seats, are encoded, their samples run, finished samples are decoded.

    Bound: between two units of an interactive lane, each other lane spends at most two quanta, between two
    of a `batch` lane at most twelve; whatever comes and goes meanwhile. A quantum is the greatest predicted
    cost of a unit at hand in that time.
    """

    def __init__(self, cost: CostModel, limits: BatchLimits, max_running: int) -> None:
        self.cost = cost
        self._limits = limits
        self._seats = Seats(max_running)
        self._requests: dict[str, RequestState] = {}
        self._lanes: dict[LaneKey, Lane] = {}  # those with work
        self._order: deque[Lane] = deque()
        self._turn: Lane | None = None

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    @property
    def num_running(self) -> int:
        """Samples in memory."""
        return sum(len(lane.running) + len(lane.finished) for lane in self._order)

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
            self._lane(state).enter(state)
        if samples:
            self._lane(state).join(samples)

    def started(self, state: RequestState, samples: list[SampleState]) -> None:
        """The request's prompt is encoded: these samples of its `entering` images join the next step."""
        state.entering.clear()
        lane = self._lane(state)
        lane.entered(state)
        lane.join(samples)

    def stepped(self, samples: list[SampleState]) -> None:
        """The samples have taken a step together; after its last one a sample waits to be decoded."""
        self._limits.stepped(samples[0].batch_key, len(samples))
        for sample in samples:
            if sample.is_finished:
                self._lane(sample.state).finish(sample)

    def ran_out_of_memory(self, samples: list[SampleState]) -> None:
        """The samples did not fit in one step."""
        self._limits.ran_out_of_memory(samples[0].batch_key, len(samples))

    def held_up(self, state: RequestState, seconds: float) -> None:
        """For so long it was encoded or decoded, and samples of its lane may have waited."""
        self._lane(state).held_up += seconds

    def decoded(self, sample: SampleState) -> None:
        """The sample's pixels are out."""
        self._seats.release(sample.state)
        lane = self._lane(sample.state)
        lane.finished.remove(sample)
        self._drop_if_empty(lane)

    def at_hand(self) -> dict[LaneKey, Unit]:
        """What each lane would run now, once the free seats are given away."""
        for state in self._seats.grant():
            self._lane(state).enter(state)
        steps = {lane: self._step(lane) for lane in self._order if lane.running}
        shortest = min((step.seconds for step in steps.values()), default=math.inf)
        return {lane.key: self._peek(lane, steps.get(lane), shortest) for lane in self._order}

    def next_unit(self) -> Unit | None:
        """The next unit of work, or None if there is none."""
        units = self.at_hand()
        if not units:
            return None
        quantum = max(unit.seconds for unit in units.values())
        while True:
            lane = self._order[0]
            if lane is not self._turn:
                self._turn = lane
                lane.deficit += quantum * lane.share
            lane.deficit = min(lane.deficit, 2 * quantum)  # the rest was for a unit that is gone
            if units[lane.key].seconds <= lane.deficit:
                return self._take(lane, units)
            self._order.rotate(-1)
            self._turn = None

    def _take(self, lane: Lane, units: Mapping[LaneKey, Unit]) -> Unit:
        unit = units[lane.key]
        lane.deficit -= unit.seconds
        match unit:
            case Encode(state):
                lane.encoding = state
            case Denoise():
                lane.held_up = 0.0
                return self._fill(unit, units.get(lane.key.other))
        return unit

    def _fill(self, step: Denoise, other: Unit | None) -> Denoise:
        """Samples of the other priority take what is left of the step while their lane can pay for what
        they add to it."""
        if not isinstance(other, Denoise):
            return step
        lane = self._lane(other.samples[0].state)
        together = [*step.samples, *other.samples]
        for size in range(len(step.samples) + 1, self._limits.fitting(together) + 1):
            longer = Denoise.predict(self.cost, together[:size])
            added = longer.seconds - step.seconds
            if added > lane.deficit:
                break
            step, lane.deficit, lane.held_up = longer, lane.deficit - added, 0.0
        return step

    def _peek(self, lane: Lane, step: Denoise | None, shortest: float) -> Unit:
        """Decode before encode, and while any sample runs a step once they took as long as one.

        Both run for no longer than the shortest step that waits, in their own lane less what that was held
        up already.
        """
        if step is None:
            slice_seconds = shortest
        elif lane.held_up < step.seconds:
            slice_seconds = min(shortest, step.seconds - lane.held_up)
        else:
            return step
        if lane.finished:
            return Decode.predict(self.cost, lane.finished[0], slice_seconds)
        if step is None or lane.entering:
            return Encode.predict(self.cost, lane.next_entering, slice_seconds)
        return step

    def _step(self, lane: Lane) -> Denoise:
        """The samples due first; of a request that its worker died on one at a time."""
        size = 1 if lane.key.suspect else self._limits.fitting(lane.running)
        return Denoise.predict(self.cost, lane.running[:size])

    def _lane(self, state: RequestState) -> Lane:
        key = LaneKey.of(state)
        if key not in self._lanes:
            self._lanes[key] = Lane(key)
            self._order.append(self._lanes[key])
        return self._lanes[key]

    def _leave(self, state: RequestState) -> list[SampleState]:
        """Take the request out of its lane; its samples."""
        lane = self._lanes.get(LaneKey.of(state))
        if lane is None:
            return []
        samples = lane.remove(state)
        self._drop_if_empty(lane)
        return samples

    def _drop_if_empty(self, lane: Lane) -> None:
        if not lane.has_work:
            del self._lanes[lane.key]
            self._order.remove(lane)
