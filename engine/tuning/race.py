"""Compares candidates by their time, one beside the other."""

import time
from collections.abc import Callable, Mapping, Sequence

Run = Callable[[], object]

# A candidate replaces the default only if it takes at most this share of its time: noise decides nothing.
CLEAR_WIN = 0.97
_ROUNDS = (2, 40)
_ROUND_SECONDS = 0.0003
# Contenders this much slower than the fastest are not timed again.
_HOPELESS = 1.5


def race(
    contenders: Mapping[str, Sequence[Run]], seconds: float, synchronize: Run = lambda: None
) -> dict[str, float]:
    """Time of each contender relative to the first, by its name: the mean over its runs.

    All have the same number of runs. Contenders alternate, and minima count, so that other load affects them
    alike. Takes about `seconds`, or more if two rounds do.
    """
    names = list(contenders)
    each = seconds / len(contenders[names[0]])
    columns = [fastest(runs, each, synchronize) for runs in zip(*contenders.values(), strict=True)]
    means = [sum(column[i] / column[0] for column in columns) / len(columns) for i in range(len(names))]
    return dict(zip(names, means, strict=True))


def winner(times: Mapping[str, float]) -> str:
    """The fastest, if it is clearly faster than the first, else the first."""
    first, *_ = times
    best = min(times, key=times.__getitem__)
    return best if times[best] <= CLEAR_WIN * times[first] else first


def fastest(runs: Sequence[Run], seconds: float, synchronize: Run = lambda: None) -> list[float]:
    """Minimum seconds of each run, after one that is not counted. Takes about `seconds`."""
    for run in runs:
        run()
    until = time.perf_counter() + seconds
    least = [_timed(run, 1, synchronize) for run in runs]
    repeats = max(1, int(_ROUND_SECONDS / min(least)))
    for round_ in range(_ROUNDS[1]):
        if round_ >= _ROUNDS[0] and time.perf_counter() > until:
            break
        bound = _HOPELESS * min(least)
        for i, run in enumerate(runs):
            if least[i] <= bound:
                least[i] = min(least[i], _timed(run, repeats, synchronize))
    return least


def _timed(run: Run, repeats: int, synchronize: Run) -> float:
    synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    synchronize()
    return (time.perf_counter() - started) / repeats
