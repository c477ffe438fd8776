"""What the linear layers with quantised weights have in common."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from engine.precision import Quantization


class QuantizedLinear(nn.Module):
    """y = x W^T + b; computes in the dtype of x. W (out, in) is quantised as stored, or widened."""

    kind: ClassVar[Quantization]
    weight: nn.Parameter

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.is_widened = False

    @property
    def shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    def widen(self, dtype: torch.dtype) -> None:
        """Keep the weight in the compute dtype. The results stay the same, bit for bit."""
        raise NotImplementedError


def frozen(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)


def replace(part: nn.Module, name: str, new: nn.Module | nn.Parameter) -> None:
    """Put `new` in place of the layer or parameter `name` of a model."""
    owner, _, leaf = name.rpartition(".")
    setattr(part.get_submodule(owner), leaf, new)


def scale_fault(name: str, values: Tensor) -> str | None:
    """What is wrong with `values` as the parameter `name` of such a layer, if anything."""
    if name == "weight_scale" and not (values > 0).all():
        return "a scale is not positive"
    if name == "absmax" and not (values >= 0).all():
        return "a scale is negative"
    if name == "quant_map" and not (values.diff() > 0).all():
        return "the values do not rise"
    return None
