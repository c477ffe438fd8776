"""Adds the products of low-rank matrices to spans of rows of the products of a matrix."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.kernels.candidates import Candidate


@dataclass(frozen=True, eq=False, slots=True)
class Factors:
    """The update of a matrix in which P projections are stacked: `down` (P * R, in), `up` (P, out / P, R).

    If the projections share `down`, P is 1.
    """

    down: Tensor
    up: Tensor

    @property
    def nbytes(self) -> int:
        return self.down.nbytes + self.up.nbytes

    @property
    def pieces(self) -> int:
        return len(self.up)

    @property
    def rank(self) -> int:
        return self.up.shape[2]


@dataclass(frozen=True, eq=False, slots=True)
class Span:
    """Factors that are applied to the rows from `begin` to `end`. All spans of a product have the same P."""

    begin: int
    end: int
    factors: Factors
    scale: float


@dataclass(frozen=True, slots=True)
class Masks:
    """For each row of a tensor the scales of the columns of stacked factors, and which scales are 0, such as
    those outside of their spans. Shared by the products of a pass."""

    _made: dict[tuple[object, ...], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def mask(self, x: Tensor, spans: Sequence[Span]) -> tuple[Tensor, Tensor]:
        """Both (T, 1, sum of the ranks), in float32 and bool, on the device of x (T, in)."""
        key = len(x), tuple((span.begin, span.end, span.factors.rank, span.scale) for span in spans)
        if key not in self._made:
            self._made[key] = _mask(x, spans)
        return self._made[key]


def _mask(x: Tensor, spans: Sequence[Span]) -> tuple[Tensor, Tensor]:
    bounds = list(accumulate((span.factors.rank for span in spans), initial=0))
    scales = x.new_zeros(len(x), 1, bounds[-1], dtype=torch.float32)  # not rounded to the dtype of x
    for span, (first, last) in zip(spans, pairwise(bounds), strict=True):
        scales[span.begin : span.end, :, first:last] = span.scale
    return scales, scales == 0


# Adds scale * x down^T up^T to the outputs (T, out / P), one for each projection, in place; x (T, in).
Kernel = Callable[[Sequence[Tensor], Tensor, Sequence[Span], Masks], None]


def by_span(outputs: Sequence[Tensor], x: Tensor, spans: Sequence[Span], _: Masks) -> None:
    """1 + P products for each span."""
    for span in spans:
        rows = slice(span.begin, span.end)
        low = F.linear(x[rows], span.factors.down).chunk(span.factors.pieces, dim=1)
        for output, each, up in zip(outputs, low, span.factors.up, strict=True):
            output[rows].addmm_(each, up.t(), alpha=span.scale)


def stacked(outputs: Sequence[Tensor], x: Tensor, spans: Sequence[Span], masks: Masks) -> None:
    """1 + P products: all rows with the factors of all spans, where a mask keeps those of each row."""
    if len(spans) == 1:
        by_span(outputs, x, spans, masks)
        return
    pieces = spans[0].factors.pieces
    down = torch.cat([span.factors.down.unflatten(0, (pieces, -1)) for span in spans], dim=1)
    up = torch.cat([span.factors.up for span in spans], dim=2)
    scales, is_zero = masks.mask(x, spans)
    low = F.linear(x, down.flatten(0, 1)).unflatten(1, (pieces, -1)).mul_(scales)
    low.masked_fill_(is_zero, 0.0)  # an overflow in the rows of another span made NaN
    for output, each, factor in zip(outputs, low.unbind(1), up, strict=True):
        output.addmm_(each, factor.t())


CANDIDATES = (Candidate("spans", by_span), Candidate("stacked", stacked))

# Above this sum of ranks, stacked products would waste too much time and memory.
MAX_STACKED = 128


class LowRank(nn.Module):
    """Adds the low-rank updates of a transformer of this width; `kernel` those whose ranks are small."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.kernel: Kernel = by_span

    def forward(self, outputs: Sequence[Tensor], x: Tensor, spans: Sequence[Span], masks: Masks) -> None:
        is_small = sum(span.factors.rank for span in spans) <= MAX_STACKED
        (self.kernel if is_small else by_span)(outputs, x, spans, masks)
