"""The Triton kernels of the norms, compared with torch; run by `test_triton.py` in the interpreter.

A script without pytest, whose plugins would take longer than the kernels.
"""

from itertools import product

import torch
from torch import Tensor

from engine.kernels import norm, rotary
from engine.kernels.gpu.norm import norm_rotary, rms_norm

BOUNDS = {torch.float32: 1e-6, torch.bfloat16: 8e-3}  # bfloat16: a rounding of both sides
WEIGHTS: tuple[tuple[int, ...] | None, ...] = (None, (48,), (1, 48), (9, 48))
EPS = 1e-5


def check(actual: Tensor, expected: Tensor) -> None:
    error = (actual.double() - expected.double()).norm() / expected.double().norm()
    assert error < BOUNDS[expected.dtype], (expected.shape, expected.dtype, error)


def check_rms_norm(weight: tuple[int, ...] | None, dtype: torch.dtype) -> None:
    x = torch.randn(9, 48).to(dtype)
    x[3] = 0
    factor = None if weight is None else torch.randn(weight).to(dtype)
    check(rms_norm(x, factor, EPS), norm.by_torch(x, factor, EPS))


def check_q_and_k_of_a_projection(dtype: torch.dtype) -> None:
    """Two thirds of a packed row, without a copy, each with its own weight."""
    x = torch.randn(5, 3, 4, 16).to(dtype)[:, :2]
    weight = torch.randn(2, 1, 16).to(dtype)
    table = torch.randn(2, 5, 1, 1, 8)
    check(norm_rotary(x, weight, EPS, table), rotary.by_torch(x, weight, EPS, table))


def check_heads_with_one_weight() -> None:
    x, weight, table = torch.randn(5, 3, 16), torch.randn(16), torch.randn(2, 5, 1, 8)
    check(norm_rotary(x, weight, EPS, table), rotary.by_torch(x, weight, EPS, table))


def main() -> None:
    torch.manual_seed(0)
    for weight, dtype in product(WEIGHTS, BOUNDS):
        check_rms_norm(weight, dtype)
    for dtype in BOUNDS:
        check_q_and_k_of_a_projection(dtype)
    check_heads_with_one_weight()


if __name__ == "__main__":
    main()
