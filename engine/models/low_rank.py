"""Low-rank updates of the matrices of a transformer's blocks, each for some samples of a packed row.

The updates are products beside those of the matrices, so the weights may be stored in any form.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor


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

    def add_to(self, outputs: Sequence[Tensor], x: Tensor, scale: float) -> None:
        """outputs += scale * x (T, in) down^T up^T, in place: one for each projection, (T, out / P)."""
        low = F.linear(x, self.down).chunk(len(self.up), dim=1)
        for output, each, up in zip(outputs, low, self.up.unbind(), strict=True):
            output.addmm_(each, up.t(), alpha=scale)


# The updates of one block by the name of the matrix, and those of all blocks.
Block = Mapping[str, Factors]
Blocks = tuple[Block, ...]
# What is applied to a sample: updates and their scales.
Applied = tuple[tuple[Blocks, float], ...]


@dataclass(frozen=True, eq=False, slots=True)
class BlockUpdates:
    """The updates of one block, with the rows that each applies to."""

    spans: tuple[tuple[slice, Block, float], ...]

    def add(self, matrix: str, x: Tensor, y: Tensor) -> Tensor:
        """Add the updates of a matrix to its product y = x W^T, in place."""
        for rows, factors, scale in self._of(matrix):
            factors.add_to(y[rows].chunk(len(factors.up), dim=1), x[rows], scale)
        return y

    def add_each(self, matrix: str, x: Tensor, projections: Sequence[Tensor]) -> None:
        """As `add`, where the products of the stacked projections are separate tensors."""
        for rows, factors, scale in self._of(matrix):
            factors.add_to([each[rows] for each in projections], x[rows], scale)

    @classmethod
    def leave_uncompiled(cls) -> None:
        """Make compiled code call `add` and `add_each` as they are. Imports the compiler."""
        for name in ("add", "add_each"):
            setattr(cls, name, torch.compiler.disable(getattr(cls, name)))

    def _of(self, matrix: str) -> Iterator[tuple[slice, Factors, float]]:
        for rows, block, scale in self.spans:
            if matrix in block:
                yield rows, block[matrix], scale


@dataclass(frozen=True, eq=False, slots=True)
class BatchUpdates:
    """The updates of a pass. Neighbouring samples, from `first` to `end`, that use the same ones share a
    product."""

    spans: tuple[tuple[int, int, Applied], ...]

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

    def block(self, index: int, offsets: Sequence[int]) -> BlockUpdates:
        """The updates of a block in a tensor whose samples have these boundaries, as `Rows` has them."""
        return BlockUpdates(
            tuple(
                (slice(offsets[first], offsets[end]), blocks[index], scale)
                for first, end, applied in self.spans
                for blocks, scale in applied
                if blocks[index]
            )
        )


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
