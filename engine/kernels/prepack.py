"""Prepacks the weights of a whole model."""

from torch import nn

from engine.kernels.feed_forward import FeedForward, prepacked
from engine.kernels.linear import PrepackedLinear, gains_from_prepacking


def prepack_weights(module: nn.Module) -> None:
    """Replace every layer inside `module` that gains from prepacked weights by its prepacked form."""
    for name, child in module.named_children():
        setattr(module, name, layer := _prepacked(child))
        prepack_weights(layer)


def _prepacked(layer: nn.Module) -> nn.Module:
    if isinstance(layer, FeedForward):
        return prepacked(layer)
    return PrepackedLinear(layer) if gains_from_prepacking(layer) else layer
