"""RMSNorm of each head, then its rotary position embedding; in float32 inside: bfloat16 merges far positions.

A candidate's `run` has the signature of `Kernel`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.kernels.candidates import Candidate, on_cuda_with_triton
from engine.kernels.norm import inverse_rms

# x (T, ..., K), a weight that broadcasts to it, eps, and cosines and sines (2, T, ...) that do to its halves.
Kernel = Callable[[Tensor, Tensor, float, Tensor], Tensor]


def by_torch(x: Tensor, weight: Tensor, eps: float, rotary: Tensor) -> Tensor:
    """Torch's operators."""
    cos, sin = rotary
    normed = F.rms_norm(x.float(), x.shape[-1:], None, eps) * weight
    first, second = normed.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def in_halves(x: Tensor, weight: Tensor, eps: float, rotary: Tensor) -> Tensor:
    """The norm in one pass, and each half of the result written in place."""
    cos, sin = rotary
    normed = (x * inverse_rms(x, eps)).mul_(weight)
    first, second = normed.chunk(2, dim=-1)
    rotated = torch.empty_like(normed)
    low, high = rotated.chunk(2, dim=-1)
    torch.mul(first, cos, out=low).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=high).addcmul_(first, sin)
    return rotated.to(x.dtype)


def by_triton(x: Tensor, weight: Tensor, eps: float, rotary: Tensor) -> Tensor:
    """One pass over x."""
    from engine.kernels.gpu.norm import norm_rotary

    return norm_rotary(x, weight, eps, rotary)


CANDIDATES = (
    Candidate("torch", by_torch),
    Candidate("halves", in_halves),
    Candidate("triton", by_triton, on_cuda_with_triton),
)


class NormRotary(nn.Module):
    """Norms and rotates heads of K."""

    def __init__(self, heads: int, head_dim: int, eps: float) -> None:
        super().__init__()
        self.heads, self.head_dim, self.eps = heads, head_dim, eps
        self.kernel: Kernel = by_torch

    def forward(self, x: Tensor, weight: Tensor, rotary: Tensor) -> Tensor:
        """x (T, ..., H, K), weight (..., K), rotary (2, T, 1, K/2) float32."""
        kernel = by_torch if torch.compiler.is_compiling() else self.kernel  # the compiler fuses it
        between = (1,) * (x.dim() - 3)
        return kernel(x, weight, self.eps, rotary.view(2, len(x), *between, 1, -1))
