"""The feed-forward network in pieces, as on a CPU, compared with the whole."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kernels.feed_forward import PIECE, FeedForward


def whole(mlp: FeedForward, x: Tensor) -> Tensor:
    gate, up = mlp.w13(x).chunk(2, dim=-1)
    return F.silu(gate) * up


@pytest.mark.parametrize("width", [PIECE, PIECE + 1, 2 * PIECE, 2 * PIECE + 40])
def test_in_pieces_and_whole_are_the_same(width: int) -> None:
    torch.manual_seed(0)
    mlp = FeedForward(64, width)
    x = torch.randn(7, 64)
    with torch.inference_mode():
        torch.testing.assert_close(mlp(x), mlp.w2(whole(mlp, x)), atol=1e-6, rtol=1e-5)
