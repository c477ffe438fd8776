"""fp8 weights: e4m3 with a float32 scale per output row."""

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.quantized.layer import QuantizedLinear, frozen


def to_fp8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise each row of (R, C): e4m3 (R, C), and scales (R, 1) float32 by which they are multiplied.

    The greatest magnitude of a row becomes 448, as in the published files.
    """
    # torch.compile takes these numbers as constants; it would take a module's as inputs.
    largest, tiny = torch.finfo(torch.float8_e4m3fn).max, torch.finfo(torch.float32).tiny
    scale = (rows.abs().amax(dim=-1, keepdim=True).float() / largest).clamp(min=tiny)
    return (rows / scale).to(torch.float8_e4m3fn), scale  # divided in float32


class Fp8Linear(QuantizedLinear):
    """y = x (w8 * scale)^T + b."""

    kind = "fp8"

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__(in_features, out_features, bias)
        self.weight = frozen(torch.empty(self.shape, dtype=torch.float8_e4m3fn))
        self.weight_scale = frozen(torch.empty(out_features))

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32:  # the published arithmetic, bit for bit
            return F.linear(x, self._values(x.dtype), self.bias)
        # Scaling the outputs reads and writes far less than scaling the weights, and rounds no more.
        y = F.linear(x, self._values(x.dtype)) * self.weight_scale
        return (y if self.bias is None else y + self.bias).to(x.dtype)

    def widen(self, dtype: torch.dtype) -> None:
        """In bfloat16 the values are kept without their scale, since their product would be rounded."""
        self.weight, self.is_widened = frozen(self._values(dtype)), True

    def _values(self, dtype: torch.dtype) -> Tensor:
        """The weight in `dtype`, in float32 times its scale."""
        if self.is_widened:
            return self.weight
        weight = self.weight.to(dtype)  # exact: every e4m3 value is one of any wider dtype
        return weight.mul_(self.weight_scale.unsqueeze(1)) if dtype == torch.float32 else weight
