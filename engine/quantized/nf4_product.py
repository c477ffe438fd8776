"""Products with nf4 weights. A candidate's `run` turns an NF4Linear into a module that computes the same."""

import torch
from torch import Tensor, nn

from engine.kernels.candidates import Candidate, Machine
from engine.quantized.nf4 import HAS_BITSANDBYTES, NF4Linear, quant_state


class BitsandbytesLinear(nn.Module):
    """Multiplies with bitsandbytes' 4-bit product, which does not widen the whole matrix where it can."""

    def __init__(self, layer: NF4Linear) -> None:
        super().__init__()
        from bitsandbytes import matmul_4bit

        self._product = matmul_4bit
        self._layer = layer

    def forward(self, x: Tensor) -> Tensor:
        layer = self._layer
        weight, state = layer.weight.view(-1, 1), quant_state(layer, x.dtype)
        y: Tensor = self._product(x, weight.t(), quant_state=state, bias=layer.bias)
        return y


def widening(layer: NF4Linear) -> NF4Linear:
    return layer


def _has_product(machine: Machine) -> bool:
    return HAS_BITSANDBYTES and machine.device == "cuda" and machine.dtype == torch.bfloat16


CANDIDATES = (
    Candidate("widening", widening),
    Candidate("bitsandbytes", BitsandbytesLinear, _has_product),
)
