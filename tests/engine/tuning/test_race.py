"""The comparison picks the faster of two, and the default without a clear win; on a clock of the test."""

from collections.abc import Callable

import pytest

from engine.tuning import race as module
from engine.tuning.race import race, winner


class Clock:
    """Advances only in runs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.runs: list[str] = []

    def run(self, name: str, *seconds: float) -> Callable[[], None]:
        """Takes these seconds, call after call, and the last one from then on."""
        waiting = list(seconds)

        def run() -> None:
            self.runs.append(name)
            self.now += waiting.pop(0) if len(waiting) > 1 else waiting[0]

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock.now)
    return clock


def test_the_faster_wins(clock: Clock) -> None:
    times = race({"slow": [clock.run("slow", 0.003)], "fast": [clock.run("fast", 0.002)]}, 0.05)
    assert times == pytest.approx({"slow": 1, "fast": 2 / 3})
    assert winner(times) == "fast"


def test_a_small_gain_does_not_replace_the_default(clock: Clock) -> None:
    times = race({"default": [clock.run("d", 1.0)], "other": [clock.run("o", 0.98)]}, 10.0)
    assert winner(times) == "default"


def test_the_default_stays_where_it_is_the_fastest() -> None:
    assert winner({"default": 1.0, "other": 1.5}) == "default"


def test_the_first_run_and_disturbed_runs_do_not_count(clock: Clock) -> None:
    disturbed = clock.run("a", 9.0, 1.0, 5.0, 1.0, 7.0, 1.0)
    steady = clock.run("b", 1.2)
    assert winner(race({"steady": [steady], "disturbed": [disturbed]}, 60.0)) == "disturbed"


def test_all_sizes_count_alike(clock: Clock) -> None:
    default = [clock.run("default", 0.001), clock.run("default", 1.0)]
    other = [clock.run("other", 0.0005), clock.run("other", 1.25)]
    assert race({"default": default, "other": other}, 1.0)["other"] == pytest.approx((0.5 + 1.25) / 2)


def test_a_hopeless_contender_is_not_timed_again_and_time_is_bounded(clock: Clock) -> None:
    race({"fast": [clock.run("fast", 0.1)], "hopeless": [clock.run("hopeless", 1.0)]}, 1.5)
    assert clock.runs.count("hopeless") == 2
    assert clock.now < 5
