"""Corrects the warm-up's cost model by what work really takes. Torch-free."""

from collections import deque
from statistics import median
from typing import get_args

from engine.cost import CostModel
from engine.messages import UnitKind

# So many observations decide; the warm-up counts as that many.
WINDOW = 9
# A correction beyond this factor, up or down, is not believed.
MOST = 20.0
# A smaller change of a factor is noise.
NOTICEABLE = 0.05


class Calibration:
    """`cost` is the measured model, each kind of work times the median of its last observations.

    An observation is the seconds that a step, a whole encode or a whole decode took, relative to the measured
    model. Up to WINDOW // 2 outliers (a pause, a compilation) in a row change nothing.
    """

    def __init__(self, measured: CostModel) -> None:
        self.cost = measured
        self._measured = measured
        self._factors: dict[UnitKind, float] = dict.fromkeys(get_args(UnitKind), 1.0)
        self._ratios = {kind: deque([1.0] * WINDOW, WINDOW) for kind in self._factors}

    def observe(self, kind: UnitKind, expected: float, seconds: float) -> bool:
        """Work that `cost` predicted to take `expected` seconds took `seconds`; whether `cost` changed."""
        if expected <= 0:
            return False
        before = self._factors[kind]
        self._ratios[kind].append(before * seconds / expected)
        factor = min(max(median(self._ratios[kind]), 1 / MOST), MOST)
        if abs(factor / before - 1) < NOTICEABLE:
            return False
        self._factors[kind] = factor
        self.cost = self._measured.scaled(**self._factors)
        return True
