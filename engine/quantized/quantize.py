"""Quantises the weights of a linear layer when it is loaded, as the published checkpoints are."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from engine.precision import Quantization, is_quantizable
from engine.quantized.fp8 import Fp8Linear, to_fp8
from engine.quantized.layer import QuantizedLinear, frozen
from engine.quantized.nf4 import NF4_CODE, NF4Linear, quantize_nf4

# Weights quantised at a time, which need several float32 copies.
_CHUNK = 1 << 24


def can_quantize(layer: nn.Module, kind: Quantization) -> bool:
    """Whether it is a plain linear layer whose rows consist of whole blocks."""
    return type(layer) is nn.Linear and is_quantizable(layer.in_features, kind)


def quantized(linear: nn.Linear, kind: Quantization) -> QuantizedLinear:
    """The layer with quantised weights; its bias is not changed. For the published files' bits, the weights
    must be in the dtype from which those were made."""
    layer_class = Fp8Linear if kind == "fp8" else NF4Linear
    with torch.device("meta"):
        layer = layer_class(linear.in_features, linear.out_features, bias=False)
    layer.bias = linear.bias
    for name, values in _parameters(linear.weight.detach(), kind).items():
        setattr(layer, name, frozen(values))
    return layer


def _parameters(weight: Tensor, kind: Quantization) -> dict[str, Tensor]:
    quantise = to_fp8 if kind == "fp8" else quantize_nf4
    values, scales = (torch.cat(parts) for parts in zip(*map(quantise, _chunks(weight)), strict=True))
    if kind == "fp8":
        return {"weight": values, "weight_scale": scales.squeeze(1)}
    code = torch.tensor(NF4_CODE, device=weight.device)
    return {"weight": values, "absmax": scales, "quant_map": code}


def _chunks(weight: Tensor) -> Iterator[Tensor]:
    yield from weight.split(max(1, _CHUNK // weight.shape[1]))
