"""The SwiGLU feed-forward network whose gate and up projections are one matrix.

A candidate's `run` turns a FeedForward of plain Linear layers into a module that computes the same.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.kernels.candidates import Candidate, on_cpu
from engine.kernels.linear import can_prepack, prepack, prepacked_linear, prepacked_swiglu

# Columns of the hidden layer that `pieces` computes at a time.
PIECE = 1024


class FeedForward(nn.Module):
    """w2(silu(gate) * up), where `w13` is the gate projection (`w1`) above the up projection (`w3`)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w13 = nn.Linear(width, 2 * hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)

    def candidates(self) -> tuple[Candidate, ...]:
        """Without `pieces` if there would be a single one."""
        return CANDIDATES if self.w2.in_features > PIECE else (PLAIN, PREPACKED)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x)
        return self.down(F.silu(gate) * up)

    def gate_up(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = self.w13(x).chunk(2, dim=-1)
        return gate, up

    def down(self, hidden: Tensor) -> Tensor:
        return cast(Tensor, self.w2(hidden))


class PiecewiseFeedForward(FeedForward):
    """Computes a few columns of the hidden layer at a time, while the processor's cache holds them."""

    def __init__(self, plain: FeedForward) -> None:
        nn.Module.__init__(self)
        self.w13, self.w2 = plain.w13, plain.w2

    def forward(self, x: Tensor) -> Tensor:
        gates, ups = (matrix.split(PIECE) for matrix in self.w13.weight.chunk(2))
        pieces = [F.silu(F.linear(x, gate)) * F.linear(x, up) for gate, up in zip(gates, ups, strict=True)]
        return self.w2(torch.cat(pieces, dim=-1))


class PrepackedFeedForward(nn.Module):
    """Fuses the activation into the products of gate and up, whose weights are prepacked."""

    def __init__(self, plain: FeedForward) -> None:
        super().__init__()
        self.gate, self.up = map(prepack, plain.w13.weight.chunk(2))
        self.w2 = prepack(plain.w2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return prepacked_linear(prepacked_swiglu(x, self.gate, self.up), self.w2, None)

    def gate_up(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return prepacked_linear(x, self.gate, None), prepacked_linear(x, self.up, None)

    def down(self, hidden: Tensor) -> Tensor:
        return prepacked_linear(hidden, self.w2, None)


def plain(layer: FeedForward) -> FeedForward:
    return layer


PLAIN = Candidate("plain", plain)
PIECES = Candidate("pieces", PiecewiseFeedForward, on_cpu)
PREPACKED = Candidate("prepacked", PrepackedFeedForward, can_prepack)
CANDIDATES = (PLAIN, PIECES, PREPACKED)
