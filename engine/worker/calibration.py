"""Corrects the warm-up's cost model by the observed time of work. Torch-free."""

from collections import deque
from statistics import median
from typing import get_args

from engine.cost import CostModel
from engine.messages import UnitKind

# Number of latest observations in the median; the warm-up counts as this many.
WINDOW = 9
# Limit of a correction factor, up and down.
MAX_FACTOR = 20.0
# Relative change of a factor below which it is noise.
MIN_CHANGE = 0.05


class Calibration:
    """`cost` is the measured model, with each kind of work scaled by the median of its latest observations.

    An observation is the time of a step, a whole encode or a whole decode, relative to the measured model. Up
    to WINDOW // 2 outliers in a row (a pause, a compilation) have no effect.
    """

    def __init__(self, measured: CostModel) -> None:
        self.cost = measured
        self._measured = measured
        self._factors: dict[UnitKind, float] = dict.fromkeys(get_args(UnitKind), 1.0)
        self._ratios = {kind: deque([1.0] * WINDOW, WINDOW) for kind in self._factors}

    def observe(self, kind: UnitKind, expected: float, seconds: float) -> bool:
        """Add work that took `seconds` where `cost` predicted `expected`. Returns whether `cost` changed."""
        if expected <= 0:
            return False
        before = self._factors[kind]
        self._ratios[kind].append(before * seconds / expected)
        factor = min(max(median(self._ratios[kind]), 1 / MAX_FACTOR), MAX_FACTOR)
        if abs(factor / before - 1) < MIN_CHANGE:
            return False
        self._factors[kind] = factor
        self.cost = self._measured.scaled(**self._factors)
        return True
