"""The MLP in pieces, as a CPU computes it, and whole."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.models.dit import PIECE, DiTConfig, FeedForward


def whole(mlp: FeedForward, x: Tensor) -> Tensor:
    gate, up = mlp.w13(x).chunk(2, dim=-1)
    return F.silu(gate) * up


@pytest.mark.parametrize("width", [PIECE, PIECE + 1, 2 * PIECE, 2 * PIECE + 40])
def test_in_pieces_and_whole_are_the_same(width: int) -> None:
    torch.manual_seed(0)
    config = DiTConfig(
        attention_head_dim=64, num_attention_heads=1, intermediate_size=width, mrope_section=(8, 4, 4)
    )
    mlp = FeedForward(config)
    x = torch.randn(7, 64)
    with torch.inference_mode():
        torch.testing.assert_close(mlp(x), mlp.w2(whole(mlp, x)), atol=1e-6, rtol=1e-5)
