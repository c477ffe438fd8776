"""The Triton kernels of the norms, compared with torch; run by `test_triton.py` in the interpreter."""

import pytest
import torch

from engine.kernels import norm, rotary
from engine.kernels.gpu.norm import norm_rotary, rms_norm
from tests.engine.conftest import relative

BOUNDS = {torch.float32: 1e-6, torch.bfloat16: 8e-3}  # bfloat16: a rounding of both sides
EPS = 1e-5


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("weight", [None, (48,), (1, 48), (9, 48)])
def test_rms_norm(weight: tuple[int, ...] | None, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(9, 48).to(dtype)
    x[3] = 0
    factor = None if weight is None else torch.randn(weight).to(dtype)
    assert relative(rms_norm(x, factor, EPS), norm.by_torch(x, factor, EPS)) < BOUNDS[dtype]


@pytest.mark.parametrize("dtype", BOUNDS)
def test_q_and_k_of_a_projection(dtype: torch.dtype) -> None:
    """Two thirds of a packed row, without a copy, each with its own weight."""
    torch.manual_seed(0)
    x = torch.randn(5, 3, 4, 16).to(dtype)[:, :2]
    weight = torch.randn(2, 1, 16).to(dtype)
    table = torch.randn(2, 5, 1, 1, 8)
    expected = rotary.by_torch(x, weight, EPS, table)
    assert relative(norm_rotary(x, weight, EPS, table), expected) < BOUNDS[dtype]


def test_heads_with_one_weight() -> None:
    torch.manual_seed(0)
    x, weight, table = torch.randn(5, 3, 16), torch.randn(16), torch.randn(2, 5, 1, 8)
    expected = rotary.by_torch(x, weight, EPS, table)
    assert relative(norm_rotary(x, weight, EPS, table), expected) < BOUNDS[torch.float32]
