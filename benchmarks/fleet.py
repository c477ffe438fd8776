"""Simulate a day of traffic on a fleet: `python -m benchmarks.fleet [--hours H] [--peak R] [--seed S]`.

Replays a diurnal load with bursts against replicas of one H100 each, using the predicted cost model of
`benchmarks.sizing`. Compares routing policies at a fixed fleet size, and scaling signals at several targets.
The result ranks the alternatives; it is not a measurement of a GPU.

A replica generates one image at a time, ordered by virtual due time (arrival plus five times the predicted
cost). Like the server, it rejects a request that would exceed MAX_BACKLOG. A new pod is ready after
START_SECONDS.
"""

import argparse
import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.gpus import H100
from benchmarks.sizing import image_seconds, predicted_cost

MAX_BACKLOG = 120.0
DUE_FACTOR = 5.0
START_SECONDS = 240.0  # assumed: node provisioning, image pull, load of 53 GB of weights
COOL_DOWN = 300.0
EVALUATE_SECONDS = 15.0
UTILISATION_WINDOW = 60.0
PREDICTION_ERROR = 0.1  # standard deviation of actual / predicted seconds

# Request mix: preset, side of the square image in pixels, share of requests.
MIX = [
    ("V4_TURBO_12", 512, 0.10),
    ("V4_TURBO_12", 1024, 0.30),
    ("V4_DEFAULT_20", 1024, 0.40),
    ("V4_DEFAULT_20", 2048, 0.045),
    ("V4_QUALITY_48", 1024, 0.15),
    ("V4_QUALITY_48", 2048, 0.005),
]


@dataclass(frozen=True, slots=True)
class Request:
    """`cost` is the predicted time in seconds, `seconds` the actual time."""

    arrival: float
    cost: float
    seconds: float


def traffic(hours: float, peak: float, seed: int) -> list[Request]:
    """Generate `hours` of load: `peak` requests/s at noon, a fifth at night, bursts at twice the rate."""
    chance = random.Random(seed)
    model = predicted_cost(H100)
    costs = [image_seconds(model, preset, side, side) for preset, side, _ in MIX]
    shares = [share for *_, share in MIX]
    length = hours * 3600
    bursts = [chance.uniform(0, length) for _ in range(max(1, round(hours)))]
    requests, now = [], 0.0
    while (now := now + chance.expovariate(2 * peak)) < length:
        rate = peak * (0.6 - 0.4 * math.cos(2 * math.pi * now / length))
        if any(start <= now < start + 180 for start in bursts):
            rate *= 2
        if chance.random() * 2 * peak < rate:
            (cost,) = chance.choices(costs, shares)
            factor = max(0.5, chance.gauss(1, PREDICTION_ERROR))
            requests.append(Request(now, cost, cost * factor))
    return requests


@dataclass
class Replica:
    """Waiting requests, ordered by due time, and the running request, which ends at `busy_until`."""

    started: float
    ready: float
    stopped: float = math.inf
    waiting: list[tuple[float, int, Request]] = field(default_factory=list)
    running: Request | None = None
    busy_until: float = 0.0
    waiting_cost: float = 0.0

    @property
    def in_flight(self) -> int:
        return len(self.waiting) + (self.running is not None)

    def backlog(self, now: float) -> float:
        """The server's `ideoserve_backlog_seconds`."""
        return self.waiting_cost + (max(self.busy_until - now, 0.0) if self.running else 0.0)

    def push(self, order: int, request: Request) -> None:
        heapq.heappush(self.waiting, (request.arrival + DUE_FACTOR * request.cost, order, request))
        self.waiting_cost += request.cost

    def pop(self) -> Request:
        request = heapq.heappop(self.waiting)[2]
        self.waiting_cost -= request.cost
        return request


Policy = Callable[[Sequence[Replica], int, float], Replica]
POLICIES: dict[str, Policy] = {
    "round robin": lambda replicas, order, _: replicas[order % len(replicas)],
    "least requests": lambda replicas, order, _: min(replicas, key=lambda r: r.in_flight),
    "least backlog seconds": lambda replicas, order, now: min(replicas, key=lambda r: r.backlog(now)),
}
QUEUE = "shared pull queue"


@dataclass(frozen=True, slots=True)
class Load:
    """Metrics of the ready replicas, as Prometheus would report them."""

    replicas: int
    utilisation: float
    in_flight: int
    backlog: float


# Maps the load and a target to the desired number of replicas.
Signal = Callable[[Load, float], float]
SIGNALS: dict[str, tuple[Signal, Sequence[float]]] = {
    "GPU utilisation {:.0%}": (
        lambda load, target: load.replicas * load.utilisation / target,
        (0.7, 0.8, 0.9),
    ),
    "{} requests per replica": (lambda load, target: load.in_flight / target, (1, 1.5, 2)),
    "{} backlog seconds per replica": (lambda load, target: load.backlog / target, (10, 20, 40)),
    "GPU utilisation 80% or {} backlog seconds per replica": (
        lambda load, target: max(load.replicas * load.utilisation / 0.8, load.backlog / target),
        (60,),
    ),
}


@dataclass(frozen=True, slots=True)
class Result:
    """`waits` are the latencies minus the processing time of each request, in seconds."""

    latencies: Sequence[float]
    waits: Sequence[float]
    rejected: int
    gpu_hours: float

    def row(self, name: str) -> str:
        p50, p99 = _quantile(self.latencies, 0.5), _quantile(self.latencies, 0.99)
        times = f"{p50:.1f} s | {p99:.1f} s | {_quantile(self.waits, 0.99):.1f} s"
        return f"| {name} | {times} | {self.rejected} | {self.gpu_hours:.0f} |"


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[int(len(values) * share)]


class Fleet:
    """One simulation run. Its events are arrivals, completions, and evaluations of the scaling signal."""

    def __init__(self, policy: str, size: int, signal: Signal | None = None, target: float = 0.0) -> None:
        self._policy = POLICIES.get(policy)
        self._signal, self._target = signal, target
        self._replicas = [Replica(0.0, 0.0) for _ in range(size)]
        self._gone: list[Replica] = []
        self._queue = Replica(0.0, 0.0)  # the shared queue; runs no requests
        self._ends: list[tuple[float, int, Replica]] = []
        self._latencies: list[float] = []
        self._waits: list[float] = []
        self._rejected = 0
        self._uses: deque[float] = deque(maxlen=int(UTILISATION_WINDOW / EVALUATE_SECONDS))
        self._wanted: deque[int] = deque(maxlen=int(COOL_DOWN / EVALUATE_SECONDS))

    def run(self, requests: Sequence[Request]) -> Result:
        evaluation = EVALUATE_SECONDS
        for order, request in enumerate(requests):
            while evaluation < request.arrival:
                self._finish_until(evaluation)
                self._scale(evaluation)
                evaluation += EVALUATE_SECONDS
            self._finish_until(request.arrival)
            self._arrive(order, request)
        end = requests[-1].arrival
        self._finish_until(math.inf)
        return Result(self._latencies, self._waits, self._rejected, self._gpu_seconds(end) / 3600)

    def _arrive(self, order: int, request: Request) -> None:
        ready = [replica for replica in self._replicas if replica.ready <= request.arrival]
        if self._policy is None:
            ahead = self._queue.waiting_cost / len(ready)
            target = self._queue
        else:
            target = self._policy(ready, order, request.arrival)
            ahead = target.backlog(request.arrival)
        if ahead > 0 and ahead + request.cost > MAX_BACKLOG:
            self._rejected += 1
            return
        target.push(order, request)
        for replica in ready if target is self._queue else [target]:
            self._begin(replica, order, request.arrival)

    def _begin(self, replica: Replica, order: int, now: float) -> None:
        source = replica if self._policy else self._queue
        if replica.running or not source.waiting or now >= replica.stopped:
            return
        replica.running = source.pop()
        replica.busy_until = now + replica.running.seconds
        heapq.heappush(self._ends, (replica.busy_until, order, replica))

    def _finish_until(self, now: float) -> None:
        while self._ends and self._ends[0][0] <= now:
            end, order, replica = heapq.heappop(self._ends)
            assert replica.running
            self._latencies.append(end - replica.running.arrival)
            self._waits.append(self._latencies[-1] - replica.running.seconds)
            replica.running = None
            self._begin(replica, order, end)

    def _scale(self, now: float) -> None:
        if self._signal is None:
            return
        load = self._load(now)
        wanted = self._signal(load, self._target)
        if abs(wanted - load.replicas) <= 0.1 * load.replicas:  # the HPA's default tolerance
            wanted = load.replicas
        self._wanted.append(max(math.ceil(wanted), 1))
        for _ in range(self._wanted[-1] - len(self._replicas)):
            self._replicas.append(Replica(now, now + START_SECONDS))
        for _ in range(len(self._replicas) - max(self._wanted)):
            self._stop(now)

    def _load(self, now: float) -> Load:
        ready = [replica for replica in self._replicas if replica.ready <= now]
        busy = sum(replica.running is not None for replica in ready)
        self._uses.append(busy / len(ready))
        queue = self._queue
        return Load(
            replicas=len(ready),
            utilisation=sum(self._uses) / len(self._uses),
            in_flight=sum(replica.in_flight for replica in ready) + queue.in_flight,
            backlog=sum(replica.backlog(now) for replica in ready) + queue.waiting_cost,
        )

    def _stop(self, now: float) -> None:
        """Drain the least loaded replica: it finishes its work and gets no new requests."""
        replica = min(self._replicas, key=lambda r: (r.ready <= now, r.backlog(now)))
        if len(self._replicas) > 1:
            self._replicas.remove(replica)
            replica.stopped = now + replica.backlog(now)
            self._gone.append(replica)

    def _gpu_seconds(self, end: float) -> float:
        return sum(min(replica.stopped, end) - replica.started for replica in [*self._replicas, *self._gone])


HEAD = "| p50 | p99 | p99 wait | rejected | GPU hours |\n|---|---|---|---|---|---|"


def routing_table(requests: Sequence[Request], size: int) -> Iterator[str]:
    yield f"| routing policy, {size} replicas {HEAD}"
    for policy in [*POLICIES, QUEUE]:
        yield Fleet(policy, size).run(requests).row(policy)


def scaling_table(requests: Sequence[Request], size: int) -> Iterator[str]:
    best = "least backlog seconds"
    yield f"| scaling signal, routing by {best} {HEAD}"
    yield Fleet(best, size).run(requests).row(f"none, {size} replicas")
    for name, (signal, targets) in SIGNALS.items():
        for target in targets:
            yield Fleet(best, max(1, size // 4), signal, target).run(requests).row(name.format(target))


def main() -> None:
    parser = argparse.ArgumentParser(description="Simulate routing policies and scaling signals.")
    parser.add_argument("--hours", type=float, default=24, help="simulated hours (default 24)")
    parser.add_argument("--peak", type=float, default=1.0, help="peak load in requests/s (default 1)")
    parser.add_argument("--seed", type=int, default=1, help="random seed of the traffic (default 1)")
    arguments = parser.parse_args()
    requests = traffic(arguments.hours, arguments.peak, arguments.seed)
    work = sum(request.seconds for request in requests)
    size = fixed_size(requests)
    print(f"{len(requests)} requests, {work / 3600:.0f} GPU hours of work, predicted\n")
    print(*routing_table(requests, size), "", *scaling_table(requests, size), sep="\n")


def fixed_size(requests: Sequence[Request]) -> int:
    """Number of replicas that are 90% busy during the busiest 15 minutes."""
    quarters: dict[int, float] = {}
    for request in requests:
        quarter = int(request.arrival // 900)
        quarters[quarter] = quarters.get(quarter, 0.0) + request.seconds
    return math.ceil(max(quarters.values()) / 900 / 0.9)


if __name__ == "__main__":
    main()
