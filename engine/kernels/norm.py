"""Root mean square normalisation, times a weight; in float32 inside, rounded once.

A candidate's `run` has the signature of `Kernel`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.kernels.candidates import Candidate, on_cuda_with_triton

# x (T, ..., D), a weight that broadcasts to it or None, and eps.
Kernel = Callable[[Tensor, Tensor | None, float], Tensor]


def by_torch(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Torch's operator, with the weight inside it if there is one row of it."""
    size = x.shape[-1:]
    if weight is None or weight.numel() == size[0]:
        return F.rms_norm(x, size, None if weight is None else weight.flatten(), eps)
    return (F.rms_norm(x.float(), size, None, eps) * weight).to(x.dtype)


def by_vector_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """The norm of each row in one pass, where torch's operator squares and sums in two."""
    normed = x * inverse_rms(x, eps)
    return (normed if weight is None else normed.mul_(weight)).to(x.dtype)


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x^2) + eps) over the last dimension, which is kept; in float32."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return norm.square_().mul_(1 / x.shape[-1]).add_(eps).rsqrt_()


def by_triton(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """One pass over x, with any weight."""
    from engine.kernels.gpu.norm import rms_norm

    return rms_norm(x, weight, eps)


CANDIDATES = (
    Candidate("torch", by_torch),
    Candidate("vector", by_vector_norm),
    Candidate("triton", by_triton, on_cuda_with_triton),
)


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps
        self.kernel: Kernel = by_torch

    def forward(self, x: Tensor) -> Tensor:
        return self.times(x, self.weight)

    def times(self, x: Tensor, weight: Tensor | None) -> Tensor:
        """x / rms(x) * `weight`, which broadcasts to x; the layer's weight is not used."""
        kernel = by_torch if torch.compiler.is_compiling() else self.kernel  # the compiler fuses it
        return kernel(x, weight, self.eps)
