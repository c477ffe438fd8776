"""The log line of a worker's start."""

from engine.worker.phases import Phases


def test_the_line_names_each_phase_and_the_sum() -> None:
    times = iter([1.0, 2.5, 2.75, 4.0])
    phases = Phases(lambda: next(times))
    for name in ("imports", "load", "warm-up"):
        phases.end(name)
    assert str(phases) == "ready after 3.00 s: imports 1.50 s, load 0.25 s, warm-up 1.25 s"
    assert phases.fields() == {
        "phase_seconds": {"imports": 1.5, "load": 0.25, "warm-up": 1.25},
        "start_seconds": 3.0,
    }
