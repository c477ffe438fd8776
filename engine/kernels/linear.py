"""Linear layers, plain or with weights prepacked into oneDNN's blocked format.

A plain product repacks the weights on every call (bfloat16) or is computed by MKL (float32). A candidate's
`run` turns a Linear into a module that computes the same.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from engine.kernels.candidates import Candidate, Machine

_product = torch.ops.mkldnn._linear_pointwise
# Registered as operators for torch.compile, which cannot trace prepacked weights. Calling an operator costs a
# few microseconds more, so other calls do without.
_operators = torch.library.Library("ideoserve", "DEF")


def _operator(
    signature: str, run: Callable[..., Tensor], fake: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    """Register `run` as an operator that torch.compile treats as opaque; `fake` returns an empty result."""
    name = _operators.define(signature)
    for key in ("CPU", "MkldnnCPU"):
        _operators.impl(name, run, key)
    torch.library.register_fake(f"ideoserve::{name}", fake)
    return getattr(torch.ops.ideoserve, name).default


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = _product(x, weight, bias, "none", [], "")
    return product


def _swiglu(x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    """The activation and the product are fused into the matrix products."""
    hidden: Tensor = _product.binary(x, _product(x, gate, None, "swish", [], ""), up, None, "mul")
    return hidden


def _shape(x: Tensor, weight: Tensor, _: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


_linear_operator = _operator(
    "prepacked_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor", _linear, _shape
)
_swiglu_operator = _operator("prepacked_swiglu(Tensor x, Tensor gate, Tensor up) -> Tensor", _swiglu, _shape)


def prepacked_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b."""
    return (_linear_operator if torch.compiler.is_compiling() else _linear)(x, weight, bias)


def prepacked_swiglu(x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    """silu(x G^T) * (x U^T)."""
    return (_swiglu_operator if torch.compiler.is_compiling() else _swiglu)(x, gate, up)


class PrepackedLinear(nn.Module):
    """Computes what `linear` does; the plain weight is not kept."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = prepack(linear.weight), linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return prepacked_linear(x, self.weight, self.bias)


def prepack(weight: Tensor) -> Tensor:
    """The weight (out, in) in oneDNN's blocked format."""
    prepacked: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
    return prepacked


def can_prepack(machine: Machine) -> bool:
    """Whether oneDNN has products of this dtype on the processor."""
    if machine.device != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return machine.dtype == torch.float32 or supported


def plain(layer: nn.Linear) -> nn.Linear:
    return layer


CANDIDATES = (Candidate("plain", plain), Candidate("prepacked", PrepackedLinear, can_prepack))
