"""Which unit of work runs next: plain Python, no tensors, no clock.

Between resolutions: deficit round robin by predicted cost. Within one: earliest virtual due time
first, where a request is due at `submitted + STRETCH * its cost alone`; so a short request passes a long
one that came little earlier, equal ones run in order of arrival, and none waits for ever.
"""

from collections import deque
from dataclasses import dataclass, replace
from itertools import accumulate, chain, takewhile

from engine.cost import CostModel
from engine.lane import Lane
from engine.limits import BatchLimits
from engine.messages import EngineRequest, Priority
from engine.request import BatchKey, RequestState, SampleState

# How many times its own cost a request may take before it goes first.
STRETCH = 5.0
# Priority `batch` is due this many seconds later.
BATCH_DELAY = 3600.0


@dataclass(frozen=True, slots=True)
class Encode:
    """Run (a part of) the text encoder for a request."""

    request: RequestState


@dataclass(frozen=True, slots=True)
class Denoise:
    """Advance these samples, all of one resolution, by one step."""

    samples: list[SampleState]


@dataclass(frozen=True, slots=True)
class Decode:
    """Run (a part of) the VAE for a finished sample."""

    sample: SampleState


Unit = Encode | Denoise | Decode


class Scheduler:
    """`waiting` requests are encoded, their samples run, finished samples are decoded.

    Bound: between two turns of a resolution that has a unit at hand, each other one spends less than two
    quanta, a quantum being the greatest predicted cost of a unit at hand; whatever comes and goes meanwhile.
    """

    def __init__(self, cost: CostModel, limits: BatchLimits, max_running: int) -> None:
        self.cost = cost
        self.limits = limits
        self.max_running = max_running
        self._lanes: deque[Lane] = deque()
        self._turn: Lane | None = None
        self._requests: dict[str, RequestState] = {}

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    @property
    def num_running(self) -> int:
        """Samples in memory."""
        return sum(len(lane.running) + len(lane.finished) for lane in self._lanes)

    def add(self, request: EngineRequest) -> None:
        """Queue a request."""
        state = RequestState(request, due=self._due(request))
        self._requests[request.request_id] = state
        lane = self._lane(state.batch_key)
        lane.waiting.append(state)
        lane.waiting.sort(key=lambda waiting: waiting.due)

    def remove(self, request_id: str) -> RequestState | None:
        """Forget a request wherever it is: done, failed or aborted. None if it is not known."""
        state = self._requests.pop(request_id, None)
        if state is None:
            return None
        lane = self._lane(state.batch_key)
        lane.waiting = [waiting for waiting in lane.waiting if waiting is not state]
        lane.running = [sample for sample in lane.running if sample.state is not state]
        lane.finished = deque(sample for sample in lane.finished if sample.state is not state)
        if not lane.has_work:
            self._lanes.remove(lane)
        return state

    def promote(self, request_id: str, priority: Priority) -> None:
        """Change the priority of a request wherever it is; an unknown id is ignored."""
        state = self._requests.get(request_id)
        if state is None:
            return
        state.request = replace(state.request, priority=priority)
        state.due = self._due(state.request)
        lane = self._lane(state.batch_key)
        lane.waiting.sort(key=lambda waiting: waiting.due)
        lane.running.sort(key=lambda sample: sample.state.due)

    def encoded(self, state: RequestState, samples: list[SampleState]) -> None:
        """The request's prompt is encoded: its samples join the next step."""
        lane = self._lane(state.batch_key)
        lane.waiting.remove(state)
        lane.running.extend(samples)
        lane.running.sort(key=lambda sample: sample.state.due)

    def stepped(self, sample: SampleState) -> None:
        """The sample has taken a step; after its last one it waits to be decoded."""
        if sample.is_finished:
            lane = self._lane(sample.batch_key)
            lane.running.remove(sample)
            lane.finished.append(sample)

    def held_up(self, state: RequestState, seconds: float) -> None:
        """For so long it was encoded or decoded, and samples of its resolution may have waited."""
        lane = self._lane(state.batch_key)
        if lane.running:
            lane.held_up += seconds

    def decoded(self, sample: SampleState) -> None:
        """The sample's pixels are out."""
        self._lane(sample.batch_key).finished.remove(sample)

    def at_hand(self) -> dict[BatchKey, Unit]:
        """What each resolution would run now; one that only waits for seats has nothing."""
        return {lane.key: unit for lane in self._lanes if (unit := self._peek(lane)) is not None}

    def next_unit(self) -> Unit | None:
        """The next unit of work, or None if there is none."""
        units = self.at_hand()
        if not units:
            return None
        costs = {key: self.seconds(unit) for key, unit in units.items()}
        quantum = max(costs.values())
        while True:
            lane = self._lanes[0]
            if lane is not self._turn:
                self._turn = lane
                lane.deficit += quantum * lane.share
            if lane.key not in units:
                lane.deficit = 0.0
            elif costs[lane.key] <= lane.deficit:
                return self._take(lane, units[lane.key], costs[lane.key])
            self._lanes.rotate(-1)
            self._turn = None

    def seconds(self, unit: Unit) -> float:
        """Predicted cost; of encoding and decoding that of a slice, for they are driven one at a time."""
        match unit:
            case Denoise(samples):
                return self._step_seconds(samples)
            case Encode(state):
                whole = self.cost.encode.seconds([len(state.request.token_ids)])
                return min(whole, self.slice_seconds(state))
            case Decode(sample):
                whole = self.cost.decode.seconds([self.cost.image_tokens(*sample.batch_key)])
                return min(whole, self.slice_seconds(sample.state))

    def slice_seconds(self, state: RequestState) -> float:
        """How long its encoding or decoding may run: the shortest step that waits, in its own resolution
        less what that was held up already; else a step of its own."""
        key = state.batch_key
        waiting = [
            self._step_seconds(self._batch(lane)) - (lane.held_up if lane.key == key else 0.0)
            for lane in self._lanes
            if lane.running
        ]
        tokens = self.cost.image_tokens(*key)
        return min(waiting or [self.cost.step_seconds(tokens, [len(state.request.token_ids)], 1)])

    def _step_seconds(self, samples: list[SampleState]) -> float:
        tokens = self.cost.image_tokens(*samples[0].batch_key)
        lens = [len(sample.request.token_ids) for sample in samples]
        return self.cost.step_seconds(tokens, lens, sum(sample.guidance != 1 for sample in samples))

    def _take(self, lane: Lane, unit: Unit, cost: float) -> Unit:
        lane.deficit -= cost
        if isinstance(unit, Denoise):
            lane.held_up = 0.0
        return unit

    def _peek(self, lane: Lane) -> Unit | None:
        """Decode before encode, and while any sample runs a step once they took as long as one."""
        batch = self._batch(lane) if lane.running else []
        if batch and lane.held_up >= self._step_seconds(batch):
            return Denoise(batch)
        if lane.finished:
            return Decode(lane.finished[0])
        if lane.waiting and self._has_seats(lane.next_waiting):
            return Encode(lane.next_waiting)
        return Denoise(batch) if batch else None

    def _has_seats(self, state: RequestState) -> bool:
        """Beside those of each request due earlier or being encoded; the first may always sit alone."""
        if state.work:
            return True
        waiting = chain.from_iterable(lane.waiting for lane in self._lanes)
        ahead = [other for other in waiting if other.due < state.due or other.work]
        taken = self.num_running + sum(other.num_images for other in ahead)
        return taken == 0 or taken + state.num_images <= self.max_running

    def _batch(self, lane: Lane) -> list[SampleState]:
        """The samples due first; one that its worker died on runs alone."""
        if lane.running[0].request.is_suspect:
            return lane.running[:1]
        sound = [sample for sample in lane.running if not sample.request.is_suspect]
        image_tokens = self.cost.image_tokens(*lane.key)
        totals = accumulate(image_tokens + len(sample.request.token_ids) for sample in sound)
        budget = self.limits.tokens(lane.key)
        fitting = sum(1 for _ in takewhile(lambda total: total <= budget, totals))
        return sound[: max(1, min(fitting, self.limits.samples(lane.key)))]

    def _due(self, request: EngineRequest) -> float:
        delay = BATCH_DELAY if request.priority == "batch" else 0.0
        return request.submitted + STRETCH * self.cost.request_seconds(request) + delay

    def _lane(self, key: BatchKey) -> Lane:
        for lane in self._lanes:
            if lane.key == key:
                return lane
        lane = Lane(key)
        self._lanes.append(lane)
        return lane
