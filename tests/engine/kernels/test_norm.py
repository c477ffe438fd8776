"""Each candidate of RMSNorm and of norm with rotary position embedding, compared with float64."""

import pytest
import torch
from torch import Tensor

from engine.kernels import norm, rotary
from engine.kernels.candidates import Candidate, Machine
from engine.kernels.norm import RMSNorm
from engine.kernels.rotary import NormRotary
from tests.engine.conftest import relative

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BOUNDS = {torch.float32: 1e-6, torch.bfloat16: 4e-3}  # bfloat16: one rounding
EPS = 1e-5


def normed(x: Tensor) -> Tensor:
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt()


def require(candidate: Candidate, dtype: torch.dtype) -> None:
    if not candidate.is_correct(Machine(DEVICE, dtype)):
        pytest.skip("not on this machine")


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("rows", [None, 0, 1, 9])
@pytest.mark.parametrize("candidate", norm.CANDIDATES, ids=lambda each: each.name)
def test_a_norm(candidate: Candidate, rows: int | None, dtype: torch.dtype) -> None:
    """Times no weight, a vector, one row, or a row for each token."""
    require(candidate, dtype)
    torch.manual_seed(0)
    layer = RMSNorm(48, EPS)
    layer.kernel = candidate.run
    x = torch.randn(9, 48, device=DEVICE).to(dtype)
    x[3] = 0
    weight = None if rows is None else torch.randn(*([rows] if rows else []), 48, device=DEVICE).to(dtype)
    expected = normed(x) if weight is None else normed(x) * weight.double()
    assert relative(layer.times(x, weight), expected) < BOUNDS[dtype]
    assert layer.times(x, weight).dtype == dtype


@pytest.mark.parametrize("candidate", norm.CANDIDATES, ids=lambda each: each.name)
def test_a_sample_has_the_same_bits_alone_and_in_a_batch(candidate: Candidate) -> None:
    require(candidate, torch.bfloat16)
    torch.manual_seed(0)
    x, scale = (torch.randn(rows, 48, device=DEVICE).bfloat16() for rows in (9, 1))
    assert torch.equal(candidate.run(x, scale, EPS), candidate.run(x, scale.expand(9, -1).contiguous(), EPS))


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("groups", [(), (2,)])
@pytest.mark.parametrize("candidate", rotary.CANDIDATES, ids=lambda each: each.name)
def test_a_norm_with_rotary(candidate: Candidate, groups: tuple[int, ...], dtype: torch.dtype) -> None:
    require(candidate, dtype)
    torch.manual_seed(0)
    layer = NormRotary(3, 16, EPS)
    layer.kernel = candidate.run
    x = torch.randn(5, *groups, 3, 16, device=DEVICE).to(dtype)
    weight = torch.randn(*groups, *(1 for _ in groups), 16, device=DEVICE).to(dtype)
    angles = torch.randn(5, 1, 8, device=DEVICE)
    table = torch.stack((angles.cos(), angles.sin()))
    turned = (
        torch.polar(torch.ones_like(angles), angles).to(torch.complex128).view(5, *(1 for _ in groups), 1, 8)
    )
    first, second = (normed(x) * weight.double()).chunk(2, dim=-1)
    rotated = torch.complex(first, second) * turned
    expected = torch.cat((rotated.real, rotated.imag), dim=-1)
    assert relative(layer(x, weight, table), expected) < BOUNDS[dtype]
