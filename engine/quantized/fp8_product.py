"""Products in fp8: activations are quantised per token, and both sides are multiplied as e4m3."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from engine.precision import Quantization, has_fp8_kernel, stays_exact
from engine.quantized.fp8 import Fp8Linear, to_fp8
from engine.quantized.layer import replace


class Fp8Product(nn.Module):
    """y = (x8 w8^T) * x_scale * w_scale + b: sums in float32, rounded once to the dtype of x.

    `x8` and `x_scale` are those of each token (`to_fp8`). Compiled, the quantisation is part of the kernel
    that makes x.
    """

    kind: ClassVar[Quantization] = "fp8"
    weight: nn.Parameter

    def __init__(self, layer: Fp8Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.weight_scale, self.bias = layer.weight, layer.weight_scale, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """x (T, in) -> (T, out)."""
        x8, scale = to_fp8(x)
        if x.is_cuda:
            return self._on_cuda(x8, scale, x.dtype)
        one = torch.ones((), device=x.device)  # torch's CPU kernel takes one scale for all rows
        y = torch._scaled_mm(x8, self.weight.t(), one, one, out_dtype=torch.float32)
        y = y.mul_(scale).mul_(self.weight_scale)
        return (y if self.bias is None else y + self.bias).to(x.dtype)

    def _on_cuda(self, x8: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        return torch._scaled_mm(
            x8,
            self.weight.t(),
            scale,
            self.weight_scale.unsqueeze(0),
            bias=self.bias,
            out_dtype=dtype,
            use_fast_accum=True,
        )


def multiply_in_fp8(part: nn.Module, is_exact: Callable[[str], bool] = stays_exact) -> None:
    """Replace the fp8 layers of a model by products in fp8, except those that `is_exact` names.

    Layers that the kernels cannot take stay exact, too.
    """
    for name, layer in list(part.named_modules()):
        if isinstance(layer, Fp8Linear) and not is_exact(name) and has_fp8_kernel(*layer.shape):
            replace(part, name, Fp8Product(layer))
