"""A day of traffic on a simulated fleet: `python -m benchmarks.fleet [--hours H] [--peak R] [--seed S]`.

Replays a diurnal day with bursts against the predicted cost model of one H100 a replica, and compares routing
policies at a fixed size, and scaling signals at several targets. A prediction, not a measurement: it says
which choice is better, not how fast a GPU is.

A replica draws one image at a time, the earliest virtual due time first (arrival plus five times its cost),
and refuses what would wait beyond MAX_BACKLOG, as the server does. A pod is ready START_SECONDS late.
"""

import argparse
import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.sizing import H100, image_seconds, predicted_cost

MAX_BACKLOG = 120.0
DUE_FACTOR = 5.0
START_SECONDS = 240.0  # a node, the image, 27 GB of weights: an assumption
COOL_DOWN = 300.0
EVALUATE_SECONDS = 15.0
UTILISATION_WINDOW = 60.0
PREDICTION_ERROR = 0.1  # standard deviation of what a request really takes, relative

# What is asked for: preset, side of the square in pixels, share.
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
    """`cost` is what a server predicts, `seconds` what it takes."""

    arrival: float
    cost: float
    seconds: float


def traffic(hours: float, peak: float, seed: int) -> list[Request]:
    """A day's shape in `hours`: `peak` requests a second at noon, a fifth at night, bursts of twice."""
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
    """Work that waits, by due time; what runs ends at `busy_until`."""

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
    """Of the ready replicas, as Prometheus would show it."""

    replicas: int
    utilisation: float
    in_flight: int
    backlog: float


# Replicas wanted, and targets.
Signal = Callable[[Load, float], float]
SIGNALS: dict[str, tuple[Signal, Sequence[float]]] = {
    "GPU use, {:.0%}": (lambda load, target: load.replicas * load.utilisation / target, (0.7, 0.8, 0.9)),
    "{} requests a replica": (lambda load, target: load.in_flight / target, (1, 1.5, 2)),
    "{} backlog seconds a replica": (lambda load, target: load.backlog / target, (10, 20, 40)),
    "GPU use, 80%, or {} backlog seconds a replica": (
        lambda load, target: max(load.replicas * load.utilisation / 0.8, load.backlog / target),
        (60,),
    ),
}


@dataclass(frozen=True, slots=True)
class Result:
    """`waits` are latencies less the request's own seconds."""

    latencies: Sequence[float]
    waits: Sequence[float]
    refused: int
    gpu_hours: float

    def row(self, name: str) -> str:
        p50, p99 = _quantile(self.latencies, 0.5), _quantile(self.latencies, 0.99)
        times = f"{p50:.1f} s | {p99:.1f} s | {_quantile(self.waits, 0.99):.1f} s"
        return f"| {name} | {times} | {self.refused} | {self.gpu_hours:.0f} |"


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[int(len(values) * share)]


class Fleet:
    """One run over the requests. Events are arrivals, ends of requests and evaluations of the signal."""

    def __init__(self, policy: str, size: int, signal: Signal | None = None, target: float = 0.0) -> None:
        self._policy = POLICIES.get(policy)
        self._signal, self._target = signal, target
        self._replicas = [Replica(0.0, 0.0) for _ in range(size)]
        self._gone: list[Replica] = []
        self._queue = Replica(0.0, 0.0)  # the shared one; draws nothing itself
        self._ends: list[tuple[float, int, Replica]] = []
        self._latencies: list[float] = []
        self._waits: list[float] = []
        self._refused = 0
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
        return Result(self._latencies, self._waits, self._refused, self._gpu_seconds(end) / 3600)

    def _arrive(self, order: int, request: Request) -> None:
        ready = [replica for replica in self._replicas if replica.ready <= request.arrival]
        if self._policy is None:
            ahead = self._queue.waiting_cost / len(ready)
            target = self._queue
        else:
            target = self._policy(ready, order, request.arrival)
            ahead = target.backlog(request.arrival)
        if ahead > 0 and ahead + request.cost > MAX_BACKLOG:
            self._refused += 1
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
        if abs(wanted - load.replicas) <= 0.1 * load.replicas:  # the autoscaler's tolerance
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
        """The least loaded drains: it finishes what it has and gets nothing new."""
        replica = min(self._replicas, key=lambda r: (r.ready <= now, r.backlog(now)))
        if len(self._replicas) > 1:
            self._replicas.remove(replica)
            replica.stopped = now + replica.backlog(now)
            self._gone.append(replica)

    def _gpu_seconds(self, end: float) -> float:
        return sum(min(replica.stopped, end) - replica.started for replica in [*self._replicas, *self._gone])


HEAD = "| p50 | p99 | p99 of the wait | refused | GPU hours |\n|---|---|---|---|---|---|"


def routing_table(requests: Sequence[Request], size: int) -> Iterator[str]:
    yield f"| routing, {size} replicas {HEAD}"
    for policy in [*POLICIES, QUEUE]:
        yield Fleet(policy, size).run(requests).row(policy)


def scaling_table(requests: Sequence[Request], size: int) -> Iterator[str]:
    best = "least backlog seconds"
    yield f"| signal, routed by {best} {HEAD}"
    yield Fleet(best, size).run(requests).row(f"none, {size} replicas")
    for name, (signal, targets) in SIGNALS.items():
        for target in targets:
            yield Fleet(best, max(1, size // 4), signal, target).run(requests).row(name.format(target))


def main() -> None:
    parser = argparse.ArgumentParser(description="Routing policies and scaling signals over a simulated day.")
    parser.add_argument("--hours", type=float, default=24, help="length of the day (default 24)")
    parser.add_argument("--peak", type=float, default=1.0, help="requests a second at noon (default 1)")
    parser.add_argument("--seed", type=int, default=1, help="of the traffic (default 1)")
    arguments = parser.parse_args()
    requests = traffic(arguments.hours, arguments.peak, arguments.seed)
    work = sum(request.seconds for request in requests)
    size = fixed_size(requests)
    print(f"{len(requests)} requests, {work / 3600:.0f} GPU hours of work; all predicted\n")
    print(*routing_table(requests, size), "", *scaling_table(requests, size), sep="\n")


def fixed_size(requests: Sequence[Request]) -> int:
    """Replicas that the busiest quarter of an hour fills to nine tenths."""
    quarters: dict[int, float] = {}
    for request in requests:
        quarter = int(request.arrival // 900)
        quarters[quarter] = quarters.get(quarter, 0.0) + request.seconds
    return math.ceil(max(quarters.values()) / 900 / 0.9)


if __name__ == "__main__":
    main()
