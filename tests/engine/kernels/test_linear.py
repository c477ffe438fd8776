"""Each candidate of a linear layer and of the feed-forward network computes the same products."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.kernels import feed_forward, linear
from engine.kernels.candidates import Candidate, Machine
from engine.kernels.feed_forward import PIECE, FeedForward
from tests.engine.conftest import relative

BOUNDS = {torch.float32: 1e-6, torch.bfloat16: 1e-2}


def supported(candidate: Candidate, dtype: torch.dtype) -> bool:
    return candidate.is_correct(Machine("cpu", dtype))


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 7, 300])
@pytest.mark.parametrize("candidate", linear.CANDIDATES, ids=lambda each: each.name)
def test_a_linear_layer(candidate: Candidate, rows: int, bias: bool, dtype: torch.dtype) -> None:
    if not supported(candidate, dtype):
        pytest.skip("not on this machine")
    torch.manual_seed(0)
    plain = nn.Linear(48, 72, bias).to(dtype)
    x = torch.randn(rows, 48).to(dtype)
    with torch.inference_mode():
        assert relative(candidate.run(plain)(x), plain.double()(x.double())) < BOUNDS[dtype]


def whole(mlp: FeedForward, x: Tensor) -> Tensor:
    gate, up = mlp.w13(x).chunk(2, dim=-1)
    return mlp.w2(F.silu(gate) * up)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("hidden", [200, PIECE, PIECE + 1, 2 * PIECE + 40])
@pytest.mark.parametrize("candidate", feed_forward.CANDIDATES, ids=lambda each: each.name)
def test_a_feed_forward_network(candidate: Candidate, hidden: int, dtype: torch.dtype) -> None:
    if not supported(candidate, dtype):
        pytest.skip("not on this machine")
    torch.manual_seed(0)
    mlp, x = FeedForward(64, hidden).to(dtype), torch.randn(7, 64).to(dtype)
    with torch.inference_mode():
        computed = candidate.run(mlp)(x)
        assert relative(computed, whole(mlp.double(), x.double())) < BOUNDS[dtype]
