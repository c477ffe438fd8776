"""Low-rank updates of the matrices of a transformer's blocks, each for some samples of a packed row.

The updates are products beside those of the matrices, so the weights may be stored in any form.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kernels.low_rank import Factors, LowRank, Masks, Span

# The updates of one block by the name of the matrix, and those of all blocks.
Block = Mapping[str, Factors]
Blocks = tuple[Block, ...]
# What is applied to a sample: updates and their scales.
Applied = tuple[tuple[Blocks, float], ...]


@dataclass(frozen=True, eq=False, slots=True)
class BlockUpdates:
    """The updates of one block. `spans` have the first row that each applies to, and the first after it."""

    spans: tuple[tuple[int, int, Block, float], ...]
    low_rank: LowRank
    masks: Masks

    def add(self, matrix: str, x: Tensor, y: Tensor) -> Tensor:
        """Add the updates of a matrix to its product y = x W^T, in place."""
        for pieces, spans in self._of(matrix):
            self.low_rank(y.chunk(pieces, dim=1), x, spans, self.masks)
        return y

    def add_each(self, matrix: str, x: Tensor, projections: Sequence[Tensor]) -> None:
        """As `add`, where the products of the stacked projections are separate tensors."""
        for _, spans in self._of(matrix):
            self.low_rank(projections, x, spans, self.masks)

    @classmethod
    def leave_uncompiled(cls) -> None:
        """Make compiled code call `add` and `add_each` as they are. Imports the compiler."""
        for name in ("add", "add_each"):
            setattr(cls, name, torch.compiler.disable(getattr(cls, name)))

    def _of(self, matrix: str) -> Iterator[tuple[int, list[Span]]]:
        """The spans of a matrix, by the number of their projections."""
        spans = [
            Span(begin, end, block[matrix], scale)
            for begin, end, block, scale in self.spans
            if matrix in block
        ]
        for pieces in sorted({span.factors.pieces for span in spans}):
            yield pieces, [span for span in spans if span.factors.pieces == pieces]


@dataclass(frozen=True, eq=False, slots=True)
class BatchUpdates:
    """The updates of a pass. Neighbouring samples, from `first` to `end`, that use the same ones share a
    product."""

    spans: tuple[tuple[int, int, Applied], ...]
    masks: Masks = field(default_factory=Masks)

    @classmethod
    def of(cls, samples: Sequence[Applied]) -> "BatchUpdates | None":
        """The updates of each sample; None if there is none."""
        if not any(samples):
            return None
        spans = []
        for key, group in groupby(enumerate(samples), lambda sample: _identity(sample[1])):
            (first, applied), *others = group
            if key:
                spans.append((first, first + 1 + len(others), applied))
        return cls(tuple(spans))

    def block(self, index: int, offsets: Sequence[int], low_rank: LowRank) -> BlockUpdates:
        """The updates of a block in a tensor whose samples have these boundaries, as `Rows` has them."""
        spans = tuple(
            (offsets[first], offsets[end], blocks[index], scale)
            for first, end, applied in self.spans
            for blocks, scale in applied
            if blocks[index]
        )
        return BlockUpdates(spans, low_rank, self.masks)


def adapted(layer: Any, x: Tensor, updates: BlockUpdates | None) -> Tensor:
    """What a feed-forward layer computes, with the updates of its matrices.

    They apply before the activation and therefore need the plain products.
    """
    if updates is None:
        return cast(Tensor, layer(x))
    gate, up = layer.gate_up(x)
    updates.add_each("w13", x, (gate, up))
    hidden = F.silu(gate) * up
    return updates.add("w2", hidden, layer.down(hidden))


def _identity(applied: Applied) -> tuple[tuple[int, float], ...]:
    return tuple((id(blocks), scale) for blocks, scale in applied)
