"""Measure a fleet with one queue beside replicas behind nginx: `python -m benchmarks.fleet_real`.

Sends the same mixed load to one broker, one front and three workers, then to three servers behind nginx with
least connections (the configuration of deploy/examples). Both run the demo model on devices of a fixed speed
(`benchmarks.paced_server`), so that two processors suffice. Presets and shares are those of the simulation
(`benchmarks.fleet`), with sides of 64, 96 and 128 pixels for 512, 1024 and 2048: the costs of requests differ
by up to 16 times, in the simulation by up to 75.

The wait of a request is its latency without the device time of its steps. `idle` is the median latency of
small requests, sent one at a time. Run it on an idle machine.
"""

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.fleet import MIX
from benchmarks.paced_server import step_seconds
from benchmarks.report import Report, add_arguments, progress
from tests.deploy.fleet import balancer
from tests.server.process import ServerProcess, until
from tests.server.queue.nats_server import NatsServer

SIZES = {512: 64, 1024: 96, 2048: 128}
STEPS = {"V4_TURBO_12": 12, "V4_DEFAULT_20": 20, "V4_QUALITY_48": 48}
NUM_WORKERS = 3
NUM_IDLE = 20
FLAGS = ("--model", "models/demo", "--log-level", "warning")
COLUMNS = {
    "system": "<28",
    "idle, s": "7.3f",
    "answered": "8d",
    "refused": "7d",
    "failed": "6d",
    "p50, s": "7.2f",
    "p99, s": "7.2f",
    "p50 wait, s": "7.2f",
    "p99 wait, s": "7.2f",
}


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request, `at` seconds after the start; `device_seconds` is the time of its steps."""

    at: float
    body: dict[str, Any]
    device_seconds: float


@dataclass(frozen=True, slots=True)
class Outcome:
    status: int
    latency: float
    wait: float


@dataclass(frozen=True, slots=True)
class Replica:
    """A server as the balancer sees it."""

    address: str
    port: int


def main() -> None:
    options = _options()
    report = Report("fleet", options, fleet=COLUMNS)
    arrivals = traffic(options.requests, options.load, options.pace, options.seed)
    for name, system in (("one queue", queue), ("nginx, least connections", replicas)):
        with system(options.pace) as url:
            idle = asyncio.run(idle_seconds(url, arrivals))
            outcomes = asyncio.run(send(url, arrivals, name))
        report.add("fleet", system=name, **{"idle, s": idle}, **summary(outcomes))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fleet_real",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--requests", type=int, default=500, help="number of requests (default 500)")
    parser.add_argument(
        "--load", type=float, default=0.8, help="share of the device time in use (default 0.8)"
    )
    parser.add_argument(
        "--pace", type=float, default=20, help="milliseconds of a step of a 64x64 image (default 20)"
    )
    parser.add_argument("--seed", type=int, default=1, help="random seed of the traffic (default 1)")
    add_arguments(parser)
    return parser.parse_args()


def traffic(count: int, load: float, pace: float, seed: int) -> list[Arrival]:
    """Arrivals at random times, over a period of which the devices are busy for the share `load`."""
    chance = random.Random(seed)
    shares = [share for *_, share in MIX]
    chosen = [
        _request(preset, SIZES[side], number, pace)
        for number, (preset, side, _) in enumerate(chance.choices(MIX, shares, k=count))
    ]
    period = sum(seconds for _, seconds in chosen) / load / NUM_WORKERS
    times = sorted(chance.uniform(0, period) for _ in chosen)
    return [Arrival(at, body, seconds) for at, (body, seconds) in zip(times, chosen, strict=True)]


def _request(preset: str, side: int, seed: int, pace: float) -> tuple[dict[str, Any], float]:
    body = {"prompt": "a red circle", "preset": preset, "size": f"{side}x{side}", "seed": seed}
    return body, STEPS[preset] * step_seconds(side, side, pace)


@contextmanager
def queue(pace: float) -> Iterator[str]:
    """One broker, one front and the workers."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        broker = stack.enter_context(closing(NatsServer(folder)))
        flags = ("--queue", broker.url, "--role")
        servers = [
            stack.enter_context(closing(_server(pace, *flags, role)))
            for role in (*["worker"] * NUM_WORKERS, "front")
        ]
        yield servers[-1].url


@contextmanager
def replicas(pace: float) -> Iterator[str]:
    """Servers of their own, behind nginx."""
    with ExitStack() as stack:
        servers = [stack.enter_context(closing(_server(pace))) for _ in range(NUM_WORKERS)]
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        addresses = [Replica(f"127.0.0.1:{server.port}", server.port) for server in servers]
        yield stack.enter_context(balancer("nginx.conf", addresses, folder)).url


def _server(pace: float, *flags: str) -> ServerProcess:
    """Ready, so that the next server does not disturb the measurement of its speed."""
    module = "benchmarks.paced_server"
    server = ServerProcess(*FLAGS, *flags, module=module, OMP_NUM_THREADS="1", PACE=str(pace))
    until(lambda: server.http.get("/readyz").status_code == 200)
    return server


async def idle_seconds(url: str, arrivals: Sequence[Arrival]) -> float:
    """Median latency of the cheapest request, one at a time."""
    cheapest = min(arrivals, key=lambda arrival: arrival.device_seconds)
    async with _client(url) as client:
        outcomes = [await _ask(client, cheapest) for _ in range(NUM_IDLE)]
    return statistics.median(outcome.latency for outcome in outcomes)


async def send(url: str, arrivals: Sequence[Arrival], name: str) -> list[Outcome]:
    """Send each request at its time, whether or not earlier ones are answered."""
    started = time.perf_counter()
    async with _client(url) as client, asyncio.TaskGroup() as group:
        tasks = []
        for arrival in progress(arrivals, name):
            await asyncio.sleep(started + arrival.at - time.perf_counter())
            tasks.append(group.create_task(_ask(client, arrival)))
    return [task.result() for task in tasks]


def _client(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None))


async def _ask(client: httpx.AsyncClient, arrival: Arrival) -> Outcome:
    started = time.perf_counter()
    response = await client.post("/v1/images", json=arrival.body)
    latency = time.perf_counter() - started
    return Outcome(response.status_code, latency, latency - arrival.device_seconds)


def summary(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """The cells of a row."""
    answered = [outcome for outcome in outcomes if outcome.status == 200]
    refused = sum(outcome.status == 429 for outcome in outcomes)
    cells: dict[str, float] = {"answered": len(answered), "refused": refused}
    cells["failed"] = len(outcomes) - len(answered) - refused
    for name in ("latency", "wait"):
        values = [getattr(outcome, name) for outcome in answered]
        suffix = " wait, s" if name == "wait" else ", s"
        cells |= {f"p50{suffix}": _quantile(values, 0.5), f"p99{suffix}": _quantile(values, 0.99)}
    return cells


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[int(len(values) * share)]


if __name__ == "__main__":
    main()
