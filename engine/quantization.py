"""Linear layers whose weights stay quantised in memory and are widened at use.

fp8: e4m3 weights with a float32 scale per output row. nf4: bitsandbytes' 4-bit normal floats,
two to a byte (first in the high half), one float32 scale (absmax) per 64 of them.
"""

import importlib.util

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NF4_BLOCK = 64


class Fp8Linear(nn.Module):
    """y = x (w8 * scale)^T + b; computes in the dtype of x."""

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        weight = torch.empty(out_features, in_features, dtype=torch.float8_e4m3fn)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.weight_scale = nn.Parameter(torch.empty(out_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The weight (out, in), scaled in float32 and rounded once to `dtype`."""
        return (self.weight.float() * self.weight_scale.unsqueeze(1)).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.dequantize(x.dtype), self.bias)


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
        if self.weight.is_cuda and importlib.util.find_spec("bitsandbytes"):
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


# Weights widened at once: bounds the float32 and index temporaries to about 100 MB.
_CHUNK = 1 << 23


def dequantize_nf4(
    packed: Tensor, absmax: Tensor, quant_map: Tensor, shape: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """Packed bytes (rows * columns / 2,) and block scales -> a matrix (rows, columns) of `dtype`."""
    rows, columns = shape
    byte = torch.arange(256, device=packed.device)
    pairs = torch.stack((quant_map[byte >> 4], quant_map[byte & 15]), dim=1)  # (256, 2)
    packed = packed.view(rows, columns // 2)
    out = torch.empty(shape, dtype=dtype, device=packed.device)
    step = max(1, _CHUNK // columns)
    for start in range(0, rows, step):
        chunk = packed[start : start + step]
        values = pairs.index_select(0, chunk.flatten().int()).view(len(chunk), columns)
        out[start : start + step] = values * _row_scales(absmax, start, len(chunk), columns)
    return out


def _row_scales(absmax: Tensor, start: int, rows: int, columns: int) -> Tensor:
    """The scale of each weight of `rows` rows, (rows, columns).

    Counts whole blocks to a row, as bitsandbytes' CPU kernel does. In the published model every row is
    whole blocks; where it is not (tiny models), this is what the published code computes on a CPU.
    """
    first = torch.arange(start, start + rows, device=absmax.device) * (columns // NF4_BLOCK)
    blocks = torch.arange(-(-columns // NF4_BLOCK), device=absmax.device)
    scales = absmax[first.unsqueeze(1) + blocks]
    return scales.repeat_interleave(NF4_BLOCK, dim=1)[:, :columns]
