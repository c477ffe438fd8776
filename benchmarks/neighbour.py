"""Measure two servers that share the cores of a machine: `python -m benchmarks.neighbour`.

A server alone, then two servers side by side, each under `--clients` concurrent requests for `--seconds`.
The ratio is the throughput of both together relative to the one alone. `--wait-policy active` shows what
threads that spin at barriers cost.
"""

import argparse
import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from benchmarks.report import Report, add_arguments, progress, verdict
from tests.server.process import ServerProcess, until

BAR = 0.9
PATIENCE = ("--max-backlog-seconds", "86400", "--max-request-seconds", "86400")
ROWS = {
    "threads wait": "<12",
    "alone, images/s": "15.2f",
    "first of two": "12.2f",
    "second of two": "13.2f",
    "together": "8.2f",
    "ratio": "5.2f",
    "bar": "<6",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.neighbour",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="models/demo")
    parser.add_argument("--size", default="128x128")
    parser.add_argument("--clients", type=int, default=4, help="concurrent requests for each server")
    parser.add_argument("--seconds", type=float, default=15.0, help="duration of each measurement")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--wait-policy", choices=("passive", "active"), default="passive")
    parser.add_argument("--spin", type=int, help="GOMP_SPINCOUNT of the servers; if unset, none is set")
    add_arguments(parser)
    options = parser.parse_args()
    environment: dict[str, Any] = {"OMP_WAIT_POLICY": options.wait_policy}
    if options.spin is not None:
        environment["GOMP_SPINCOUNT"] = str(options.spin)
    policy = options.wait_policy if options.spin is None else f"{options.spin} spins"
    report = Report("neighbour", options, neighbours=ROWS)
    for _ in progress(range(options.rounds), "measuring"):
        report.add("neighbours", **{"threads wait": policy}, **compare(options, environment))


def compare(options: argparse.Namespace, environment: dict[str, Any]) -> dict[str, float | str]:
    with ExitStack() as running:
        first = running.enter_context(serving(options.model, environment))
        (alone,) = throughput([first], options)
        second = running.enter_context(serving(options.model, environment))
        one, other = throughput([first, second], options)
    ratio = (one + other) / alone
    return {
        "alone, images/s": alone,
        "first of two": one,
        "second of two": other,
        "together": one + other,
        "ratio": ratio,
        "bar": verdict(ratio, BAR),
    }


@contextmanager
def serving(model: str, environment: dict[str, Any]) -> Iterator[ServerProcess]:
    """A server that is ready, and does not compile during the measurement."""
    flags = ("--model", model, "--compile", "false", "--log-level", "error", *PATIENCE)
    server = ServerProcess(*flags, module="server", **environment)
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
