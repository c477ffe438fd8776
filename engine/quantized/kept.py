"""How the weights of a loaded model are kept."""

from collections import Counter
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from engine.precision import Matmul, Precision
from engine.quantized.fp8_product import Fp8Product
from engine.quantized.layer import QuantizedLinear


def quantized_layers(*parts: nn.Module) -> Iterator[QuantizedLinear]:
    """The layers with quantised weights, except products in fp8; once if parts are the same."""
    for part in dict.fromkeys(parts):
        yield from (layer for layer in part.modules() if isinstance(layer, QuantizedLinear))


def widening_bytes(layers: Iterable[QuantizedLinear], dtype: torch.dtype) -> int:
    """Bytes by which the weights of these layers grow when they are widened."""
    return sum(
        layer.in_features * layer.out_features * dtype.itemsize - layer.weight.nbytes for layer in layers
    )


def precision_of(blocks: nn.Module, dtype: torch.dtype) -> Precision:
    """The precision of a transformer's blocks that compute in `dtype`."""
    compute = str(dtype).removeprefix("torch.")
    weights: Counter[str] = Counter({compute: 0})
    for layer in blocks.modules():
        if isinstance(layer, QuantizedLinear | Fp8Product):
            weights[layer.kind] += layer.in_features * layer.out_features
    ((kind, _),) = weights.most_common(1)
    matmul: Matmul = "fp8" if any(isinstance(layer, Fp8Product) for layer in blocks.modules()) else "exact"
    return Precision(kind, any(layer.is_widened for layer in quantized_layers(blocks)), matmul, compute)
