"""Bounds of a worker's silence, and gaps of the clock."""

import pytest

from engine.client.heartbeat_monitor import HeartbeatMonitor


def silence(seconds: float, expected: float = 0.0) -> HeartbeatMonitor:
    """A loaded worker with an allowed silence of 30 seconds that has been silent for `seconds`."""
    made = HeartbeatMonitor(hang_seconds=30.0, load_seconds=1800.0, now=0.0)
    made.expect(expected)
    tick(made, seconds)
    return made


def tick(made: HeartbeatMonitor, seconds: float) -> None:
    """Tick once per second."""
    start = made._ticked
    for second in range(1, int(seconds) + 1):
        made.tick(start + second)


@pytest.mark.parametrize(
    ("seconds", "silent", "unready", "hung"),
    [(3, False, False, False), (4, True, False, False), (16, True, True, False), (31, True, True, True)],
)
def test_silence_has_three_bounds(seconds: int, silent: bool, unready: bool, hung: bool) -> None:
    made = silence(seconds)
    assert (made.is_silent, made.is_unready, made.is_hung) == (silent, unready, hung)


def test_the_bounds_grow_with_the_unit_of_work() -> None:
    made = silence(50, expected=5.0)
    assert (made.is_silent, made.is_unready, made.is_hung) == (True, False, False)


def test_a_message_ends_the_silence() -> None:
    made = silence(29)
    made.heard()
    tick(made, 2)
    assert made.seconds == 2


def test_a_late_tick_counts_as_one_interval() -> None:
    made = silence(10)
    made.tick(1000)
    assert made.seconds == 11


def test_a_worker_is_not_hung_just_after_a_late_tick() -> None:
    made = silence(30)
    made.tick(1000)
    assert not made.is_hung
    made.tick(1001)
    assert made.is_hung


def test_loading_has_a_separate_limit() -> None:
    made = HeartbeatMonitor(hang_seconds=30.0, load_seconds=1800.0, now=0.0)
    tick(made, 1799)
    assert not made.is_hung
    tick(made, 2)
    assert made.is_hung
