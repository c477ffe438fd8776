"""Measure what shares the cores of a machine: `python -m benchmarks.neighbour`.

"servers": a server with the demo model alone, then two side by side, each under `--clients` concurrent
requests for `--seconds`. "waits": steps of the benchmark model at 256 px in one process, then in two, by
what threads do at barriers: sleep, spin a number of times (GOMP_SPINCOUNT) before they sleep, or spin. The
ratio is the throughput of both together relative to the one alone.
"""

import argparse
import itertools
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from unittest.mock import patch

from benchmarks.bench_model import write_bench_model
from benchmarks.report import Report, Row, add_arguments, progress, several, verdict
from benchmarks.variants import Ours
from engine.environment import set_up_environment
from tests.server.process import ServerProcess, until

BAR = 0.9
PATIENCE = ("--max-backlog-seconds", "86400", "--max-request-seconds", "86400")
DEFAULT, SLEEP, SPIN = "default", "sleep", "spin"
RATIOS = {"together": "8.2f", "ratio": "5.2f", "bar": "<6"}
SERVERS = {"alone, images/s": "15.2f", "first of two": "12.2f", "second of two": "13.2f"} | RATIOS
WAITS = {"at barriers": "<12", "alone, steps/s": "14.2f"} | RATIOS


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.neighbour",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="models/demo")
    parser.add_argument("--size", default="128x128")
    parser.add_argument("--clients", type=int, default=4, help="concurrent requests for each server")
    parser.add_argument("--seconds", type=float, default=8.0, help="duration of each measurement")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--waits",
        type=several(str),
        default=[DEFAULT, SLEEP, "3000", "10000", SPIN],
        help=f"of {DEFAULT}, {SLEEP}, {SPIN} and numbers of spins",
    )
    add_arguments(parser)
    options = parser.parse_args()
    report = Report("neighbour", options, servers=SERVERS, waits=WAITS)
    for _ in progress(range(options.rounds), "servers"):
        report.add("servers", **compare_servers(options))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench"
        write_bench_model(path)
        for wait in progress(options.waits, "waits"):
            report.add("waits", **{"at barriers": wait}, **compare_steps(path, wait, options))


def ratios(alone: float, together: float) -> Row:
    return {
        "together": together,
        "ratio": together / alone,
        "bar": verdict(together / alone, BAR),
    }


def compare_servers(options: argparse.Namespace) -> Row:
    with ExitStack() as running:
        first = running.enter_context(serving(options.model))
        (alone,) = throughput([first], options)
        second = running.enter_context(serving(options.model))
        one, other = throughput([first, second], options)
    cells = {"alone, images/s": alone, "first of two": one, "second of two": other}
    return cells | ratios(alone, one + other)


def compare_steps(path: Path, wait: str, options: argparse.Namespace) -> Row:
    """Medians over the rounds, one process and both in turn."""
    with ExitStack() as running:
        pipes = [running.enter_context(stepping(path, wait)) for _ in range(2)]
        rounds = [
            (sum(steps_per_second(pipes[:1], options.seconds)), sum(steps_per_second(pipes, options.seconds)))
            for _ in range(options.rounds)
        ]
    alone, together = (median(column) for column in zip(*rounds, strict=True))
    return {"alone, steps/s": alone} | ratios(alone, together)


@contextmanager
def stepping(path: Path, wait: str) -> Iterator[Connection]:
    """A process that runs steps for as many seconds as it receives, and answers with their rate."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=run_steps, args=(there, path), daemon=True)
    with patch.dict(os.environ, waiting(wait)):
        set_up_environment()
        process.start()
    there.close()
    here.recv()
    yield here
    here.send(None)
    process.join()


def waiting(wait: str) -> dict[str, str]:
    """The environment in which threads wait so."""
    if wait == DEFAULT:
        return {}
    policy = {"OMP_WAIT_POLICY": "active" if wait == SPIN else "passive"}
    return policy | ({"GOMP_SPINCOUNT": wait} if wait.isdigit() else {})


def run_steps(connection: Connection, path: Path) -> None:
    engine = Ours.load(path, None)
    sample = engine.start(256, "a")
    engine.step([sample])
    connection.send(None)
    while (seconds := connection.recv()) is not None:
        started, steps = time.perf_counter(), 0
        while time.perf_counter() < started + seconds:
            sample.step_index = 1
            engine.step([sample])
            steps += 1
        connection.send(steps / (time.perf_counter() - started))


def steps_per_second(pipes: Sequence[Connection], seconds: float) -> list[float]:
    """The rate of each process while all are busy."""
    for pipe in pipes:
        pipe.send(seconds)
    return [pipe.recv() for pipe in pipes]


@contextmanager
def serving(model: str) -> Iterator[ServerProcess]:
    """A server that is ready, and does not compile during the measurement."""
    flags = ("--model", model, "--compile", "false", "--log-level", "error", *PATIENCE)
    server = ServerProcess(*flags, module="server")
    try:
        until(lambda: server.http.get("/readyz").status_code == 200)
        yield server
    finally:
        server.close()


def throughput(servers: list[ServerProcess], options: argparse.Namespace) -> list[float]:
    """Images per second of each server while all are busy."""
    until_then = time.monotonic() + options.seconds
    counts = [0] * len(servers)
    seeds = itertools.count()

    def ask(index: int) -> None:
        while time.monotonic() < until_then:
            body = {"prompt": "a red circle", "size": options.size, "seed": next(seeds)}
            servers[index].http.post("/v1/images", json=body, timeout=3600).raise_for_status()
            counts[index] += 1

    started = time.monotonic()
    threads = [
        threading.Thread(target=ask, args=(index,))
        for index in range(len(servers))
        for _ in range(options.clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - started
    return [count / seconds for count in counts]


if __name__ == "__main__":
    main()
