"""Measure what a queue adds to a request: `python -m benchmarks.queue`. Run it on an idle machine.

Reports the processor time of a front per request beside that of a server alone (with the tests' fake engine),
the time from submission to the first unit of work beside that over the pipe (with the demo model), and what
pulling equal sizes first could save (from the demo model's measured costs).
"""

import argparse
import asyncio
import contextlib
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.frontend import cpu_seconds
from benchmarks.report import Report, add_arguments, progress
from engine.client.engine_client import EngineClient
from engine.config.model_config import ModelConfig
from engine.config.options import EngineOptions
from engine.cost import CostModel
from tests.server.process import ServerProcess, small
from tests.server.queue.fleet import ready
from tests.server.queue.nats_server import NatsServer

MODEL = "models/demo"
COST = {"request": "<26", "alone, us": "9.0f", "front, us": "9.0f", "ratio": "5.2f"}
FIRST = {"server": "<26", "median, ms": "10.1f", "worst, ms": "9.1f"}
AFFINITY = {"side": "5d", "batch": "5d", "ms a step": "9.2f", "two sizes": "9.1%"}
BODIES = {
    "64x64, 1 step": small(num_inference_steps=1, seed=1),
    "256x256, 20 steps": small(size="256x256", num_inference_steps=20, seed=1),
}
QUIET = ("--log-level", "warning")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.queue", description=__doc__)
    add_arguments(parser)
    report = Report("queue", parser.parse_args(), cost=COST, first=FIRST, affinity=AFFINITY)
    with tempfile.TemporaryDirectory() as folder:
        broker = NatsServer(Path(folder))
        with contextlib.closing(broker):
            cost(report, broker)
            first_steps(report, broker)
    affinity(report, asyncio.run(measured_cost()))


def cost(report: Report, broker: NatsServer) -> None:
    queue = ("--queue", broker.url, *QUIET)
    with servers([*queue, "--role", "worker"], [*queue, "--role", "front"], QUIET) as (_, front, alone):
        for name, body in progress(BODIES.items(), "processor time"):
            seconds = [cpu_seconds(each, posting(each, body)) for each in (alone, front)]
            micros = [each * 1e6 for each in seconds]
            cells = {"alone, us": micros[0], "front, us": micros[1], "ratio": micros[1] / micros[0]}
            report.add("cost", request=name, **cells)


def posting(server: ServerProcess, body: dict[str, Any]) -> Callable[[], object]:
    return lambda: server.http.post("/v1/images", json=body)


def first_steps(report: Report, broker: NatsServer) -> None:
    model, queue = ("--model", MODEL, *QUIET), ("--queue", broker.url)
    with servers(model, module="server") as (alone,):
        report.add("first", server="over the pipe", **queue_times(alone))
    commands = [[*model, *queue, "--role", role] for role in ("worker", "front")]
    with servers(*commands, module="server") as (_, front):
        report.add("first", server="through the queue", **queue_times(front))


def queue_times(server: ServerProcess) -> dict[str, float]:
    """Milliseconds between submission and the first unit of work, of requests one after the other."""
    body = small(num_inference_steps=1, seed=1)
    headers = [server.http.post("/v1/images", json=body).headers["server-timing"] for _ in range(100)]
    times = [float(re.findall(r"queue;dur=([\d.]+)", header)[0]) for header in headers[10:]]
    return {"median, ms": median(times), "worst, ms": max(times)}


async def measured_cost() -> CostModel:
    """Of the demo model on this machine."""
    engine = EngineClient(ModelConfig.load(Path(MODEL)), EngineOptions(("cpu",)))
    await engine.start()
    while not engine.speeds():  # noqa: ASYNC110 - readiness can only be polled
        await asyncio.sleep(0.1)
    speed = engine.speeds()[0]
    await engine.close()
    return speed.cost


def affinity(report: Report, model: CostModel) -> None:
    """Full batches of samples with 30 tokens of text, whose sizes differ: one pass for each size."""
    for side in (64, 128, 256, 512):
        tokens = model.image_tokens(side, side)
        batch = max(2, min(8, int(model.step_tokens(tokens) // (tokens + 30))))
        one = model.step_seconds(tokens, [30] * batch, batch)
        two = 2 * model.step_seconds(tokens, [30] * (batch // 2), batch // 2)
        cells = {"side": side, "batch": batch, "ms a step": one * 1000, "two sizes": two / one - 1}
        report.add("affinity", **cells)


@contextlib.contextmanager
def servers(*flags: Sequence[str], module: str = "tests.server.fake_server") -> Iterator[list[ServerProcess]]:
    started = [ServerProcess(*each, module=module) for each in flags]
    try:
        ready(*started)
        yield started
    finally:
        for server in started:
            server.close()


if __name__ == "__main__":
    main()
