"""bitsandbytes' product with nf4 weights. The library is a stand-in with its interface: it needs a GPU."""

import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.kernels.candidates import Machine
from engine.quantized import nf4_product
from engine.quantized.nf4 import NF4Linear, dequantize_nf4
from engine.quantized.nf4_product import CANDIDATES
from engine.quantized.quantize import quantized
from engine.tuning.cases import Shapes, find_cases

CUDA = Machine("cuda", torch.bfloat16)


@dataclass(frozen=True)
class QuantState:
    absmax: Tensor
    shape: torch.Size
    code: Tensor
    blocksize: int
    quant_type: str
    dtype: torch.dtype


def matmul_4bit(x: Tensor, weight: Tensor, quant_state: QuantState, bias: Tensor | None = None) -> Tensor:
    """`weight` are the packed bytes as a row, the transpose of what is stored."""
    assert (weight.shape[0], quant_state.blocksize, quant_state.quant_type) == (1, 64, "nf4")
    rows, columns = quant_state.shape
    packed = weight.flatten()
    wide = dequantize_nf4(packed, quant_state.absmax, quant_state.code, (rows, columns), quant_state.dtype)
    return F.linear(x, wide, bias)


@pytest.fixture
def bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    library, functional = ModuleType("bitsandbytes"), ModuleType("bitsandbytes.functional")
    library.__dict__["matmul_4bit"], functional.__dict__["QuantState"] = matmul_4bit, QuantState
    monkeypatch.setitem(sys.modules, "bitsandbytes", library)
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", functional)
    monkeypatch.setattr(nf4_product, "HAS_BITSANDBYTES", True)


def model(bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    layer = quantized(nn.Linear(128, 72, bias).bfloat16().requires_grad_(False), "nf4")
    return nn.Sequential(layer)


@pytest.mark.usefixtures("bitsandbytes")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tokens", [1, 9])
def test_each_candidate_computes_the_same(tokens: int, bias: bool) -> None:
    part, x = model(bias), torch.randn(tokens, 128).bfloat16()
    expected = part(x)
    (case,) = find_cases([(part, Shapes((7,), 7))], CUDA)
    assert (case.key, case.names) == ("nf4_linear.128x72", ["widening", "bitsandbytes"])
    for candidate in case.candidates:
        for run in case.trials(candidate):
            run()
        assert torch.equal(candidate.run(part[0])(x), expected)
    case.apply(case.candidate("bitsandbytes"))
    assert not isinstance(part[0], NF4Linear)
    assert torch.equal(part(x), expected)


@pytest.mark.usefixtures("bitsandbytes")
def test_widened_weights_have_no_candidates() -> None:
    part: Any = model()
    part[0].widen(torch.bfloat16)
    assert find_cases([(part, Shapes((7,), 7))], CUDA) == []


@pytest.mark.usefixtures("bitsandbytes")
def test_the_library_is_for_bfloat16_on_a_gpu() -> None:
    machines = [CUDA, Machine("cuda", torch.float32), Machine("cpu", torch.bfloat16)]
    assert [CANDIDATES[1].is_correct(machine) for machine in machines] == [True, False, False]


def test_without_the_library_weights_are_widened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nf4_product, "HAS_BITSANDBYTES", False)
    assert [each.name for each in CANDIDATES if each.is_correct(CUDA)] == ["widening"]
