"""Linear layers whose weights stay quantised in memory and are dequantised at use.

fp8: e4m3 weights with a float32 scale per output row. nf4: bitsandbytes' 4-bit normal floats,
two to a byte (first in the high half), one float32 scale (absmax) per 64 of them.
"""

import importlib.util
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NF4_BLOCK = 64
_HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None


def scale_fault(name: str, values: Tensor) -> str | None:
    """What is wrong with `values` as the parameter `name` of one of these layers, if anything."""
    if name == "weight_scale" and not (values > 0).all():
        return "a scale is not positive"
    if name == "absmax" and not (values >= 0).all():
        return "a scale is negative"
    if name == "quant_map" and not (values.diff() > 0).all():
        return "the values do not rise"
    return None


class Fp8Linear(nn.Module):
    """y = x (w8 * scale)^T + b; computes in the dtype of x."""

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.shape = (out_features, in_features)
        weight = torch.empty(self.shape, dtype=torch.float8_e4m3fn)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.weight_scale = nn.Parameter(torch.empty(out_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.to(x.dtype)  # exact: every e4m3 value is one of any wider dtype
        if x.dtype == torch.float32:  # the published arithmetic, bit for bit
            return F.linear(x, weight * self.weight_scale.unsqueeze(1), self.bias)
        # Scaling the outputs reads and writes far less than scaling the weights, and rounds no more.
        y = F.linear(x, weight) * self.weight_scale
        return (y if self.bias is None else y + self.bias).to(x.dtype)


class NF4Linear(nn.Module):
    """y = x lookup(w4)^T + b; computes in the dtype of x. Uses bitsandbytes' kernel on CUDA if installed."""

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        numel = in_features * out_features
        if numel % NF4_BLOCK:
            raise ValueError(
                f"nf4 needs a multiple of {NF4_BLOCK} weights, not {out_features} x {in_features}"
            )
        self.shape = (out_features, in_features)
        weight = torch.empty(numel // 2, dtype=torch.uint8)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.absmax = nn.Parameter(torch.empty(numel // NF4_BLOCK), requires_grad=False)
        self.quant_map = nn.Parameter(torch.empty(16), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The weight (out, in), scaled in float32 and rounded once to `dtype`."""
        if self.weight.is_cuda and _HAS_BITSANDBYTES:
            return self._dequantize_cuda(dtype)
        return dequantize_nf4(self.weight, self.absmax, self.quant_map, self.shape, dtype)

    def _dequantize_cuda(self, dtype: torch.dtype) -> Tensor:
        from bitsandbytes.functional import QuantState, dequantize_4bit

        state = QuantState(
            absmax=self.absmax,
            shape=torch.Size(self.shape),
            code=self.quant_map,
            blocksize=NF4_BLOCK,
            quant_type="nf4",
            dtype=dtype,
        )
        widened: Tensor = dequantize_4bit(self.weight.view(-1, 1), state)
        return widened

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.dequantize(x.dtype), self.bias)


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
