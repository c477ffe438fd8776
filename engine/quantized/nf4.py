"""nf4 weights: bitsandbytes' 4-bit normal floats, two to a byte (first in the high half).

One float32 scale (absmax) per 64 of them.
"""

import importlib.util
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.precision import NF4_BLOCK
from engine.quantized.layer import QuantizedLinear, frozen

HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None


class NF4Linear(QuantizedLinear):
    """y = x lookup(w4)^T + b. Uses bitsandbytes' kernel on CUDA if installed."""

    kind = "nf4"
    absmax: nn.Parameter
    quant_map: nn.Parameter

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__(in_features, out_features, bias)
        numel = in_features * out_features
        if numel % NF4_BLOCK:
            raise ValueError(
                f"nf4 needs a multiple of {NF4_BLOCK} weights, not {out_features} x {in_features}"
            )
        self.weight = frozen(torch.empty(numel // 2, dtype=torch.uint8))
        self.absmax = frozen(torch.empty(numel // NF4_BLOCK))
        self.quant_map = frozen(torch.empty(16))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.dequantize(x.dtype), self.bias)

    def widen(self, dtype: torch.dtype) -> None:
        self.weight, self.is_widened = frozen(self.dequantize(dtype)), True
        del self.absmax, self.quant_map

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The weight (out, in), scaled in float32 and rounded once to `dtype`."""
        if self.is_widened:
            return self.weight
        if self.weight.is_cuda and HAS_BITSANDBYTES:
            return self._dequantize_cuda(dtype)
        return dequantize_nf4(self.weight, self.absmax, self.quant_map, self.shape, dtype)

    def _dequantize_cuda(self, dtype: torch.dtype) -> Tensor:
        from bitsandbytes.functional import dequantize_4bit

        widened: Tensor = dequantize_4bit(self.weight.view(-1, 1), quant_state(self, dtype))
        return widened


def quant_state(layer: NF4Linear, dtype: torch.dtype) -> Any:
    """bitsandbytes' description of a weight whose products are in `dtype`."""
    from bitsandbytes.functional import QuantState

    return QuantState(
        absmax=layer.absmax,
        shape=torch.Size(layer.shape),
        code=layer.quant_map,
        blocksize=NF4_BLOCK,
        quant_type="nf4",
        dtype=dtype,
    )


# Weights dequantised at a time: few enough for a CPU's cache, many enough to occupy a GPU.
_CPU_CHUNK, _GPU_CHUNK = 1 << 20, 1 << 26


def dequantize_nf4(
    packed: Tensor, absmax: Tensor, quant_map: Tensor, shape: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """Packed bytes (rows * columns / 2,) and block scales -> a matrix (rows, columns) of `dtype`."""
    group = math.gcd(shape[1], NF4_BLOCK)
    groups = packed.view(-1, group // 2)
    scales = _group_scales(absmax, group, shape).unsqueeze(1)
    table = _pair_table(quant_map)
    out = torch.empty(len(groups), group, dtype=dtype, device=packed.device)
    step = (_GPU_CHUNK if packed.is_cuda else _CPU_CHUNK) // group
    for start in range(0, len(groups), step):
        chunk = slice(start, start + step)
        values = table.index_select(0, groups[chunk].flatten().int()).view(torch.float32)
        out[chunk] = values.view(-1, group).mul_(scales[chunk])
    return out.view(shape)


def _pair_table(quant_map: Tensor) -> Tensor:
    """(256,): both float32 values of each byte as one 64-bit number, so that one lookup fetches two."""
    byte = torch.arange(256, device=quant_map.device)
    pairs = torch.stack((quant_map[byte >> 4], quant_map[byte & 15]), dim=1)
    return pairs.view(torch.float64).flatten()


def _group_scales(absmax: Tensor, group: int, shape: tuple[int, int]) -> Tensor:
    """The scale of each group of a row's weights. A group is a block if rows consist of whole blocks.

    In the published model they are. In tiny models they are not; whole blocks are then assigned to a row, as
    bitsandbytes' CPU kernel does, since that is what the published code computes on a CPU.
    """
    if group == NF4_BLOCK:
        return absmax
    rows, columns = shape
    first = torch.arange(rows, device=absmax.device) * (columns // NF4_BLOCK)
    block = torch.arange(columns // group, device=absmax.device) * group // NF4_BLOCK
    return absmax[first.unsqueeze(1) + block].flatten()


# bitsandbytes' code: the quantiles of a normal distribution, scaled to [-1, 1].
NF4_CODE = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
_TINY = torch.finfo(torch.float32).tiny


def quantize_nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix whose number of weights is a multiple of 64 -> packed bytes and absmax, as of `NF4Linear`.

    Each weight becomes the nearest value of the code, as in bitsandbytes.
    """
    blocks = weight.reshape(-1, NF4_BLOCK).float()
    absmax = blocks.abs().amax(dim=1)
    code = torch.tensor(NF4_CODE, device=weight.device)
    middles = (code[1:] + code[:-1]) / 2
    normed = blocks * (1 / absmax.clamp(min=_TINY)).unsqueeze(1)
    first, second = torch.bucketize(normed, middles, out_int32=True).view(-1, 2).to(torch.uint8).unbind(1)
    return first << 4 | second, absmax
