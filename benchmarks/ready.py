"""Measure the time from the start of a server until it is ready: `python -m benchmarks.ready`."""

import argparse
import re
import time

from benchmarks.report import Report, add_arguments, progress
from tests.server.process import ServerProcess, until

PHASES = ("imports", "load", "warm-up")
ROWS = {"model": "<24", "start": "5d", "listening, s": "12.2f"}
ROWS |= {f"{phase}, s": "10.2f" for phase in PHASES}
ROWS |= {"ready, s": "8.2f", "first image, s": "14.2f"}


def start(model: str) -> dict[str, float]:
    """Seconds until the server listens, is ready, and has answered its first request (128 px, 12 steps).

    The phases are those of the worker, which starts before the server listens.
    """
    started = time.perf_counter()
    server = ServerProcess("--model", model, "--log-level", "info", module="server")
    try:
        listening = time.perf_counter() - started
        until(lambda: server.http.get("/readyz").status_code == 200)
        ready = time.perf_counter() - started
        body = {"prompt": "a red circle", "size": "128x128", "preset": "V4_TURBO_12"}
        server.http.post("/v1/images", json=body).raise_for_status()
        image = time.perf_counter() - started - ready
        phases = {f"{phase}, s": seconds(server.log, phase) for phase in PHASES}
    finally:
        server.close()
    return {"listening, s": listening, **phases, "ready, s": ready, "first image, s": image}


def seconds(log: str, phase: str) -> float:
    """Seconds of a phase in the line `ready after 2.30 s: imports 1.30 s, ...`."""
    found = re.search(rf"ready after .*{phase} ([0-9.]+) s", log)
    assert found, log
    return float(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ready", description=__doc__)
    parser.add_argument("--model", default="models/demo")
    parser.add_argument("--rounds", type=int, default=2, help="starts; later ones find compiled code on disk")
    add_arguments(parser)
    options = parser.parse_args()
    report = Report("ready", options, starts=ROWS)
    for number in progress(range(options.rounds), "starting"):
        report.add("starts", model=options.model, start=number + 1, **start(options.model))


if __name__ == "__main__":
    main()
