"""Tables of the rotary position embedding."""

import torch
from torch import Tensor


def frequencies(head_dim: int, theta: float, device: torch.device | str) -> Tensor:
    """(K/2,): theta^(-2i/K), as in RoFormer (Su et al., 2021)."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    return 1.0 / (theta**exponents)


def table(angles: Tensor) -> Tensor:
    """Angles (L, K/2) to cosines and sines (2, L, 1, K/2)."""
    return torch.stack((angles.cos(), angles.sin())).unsqueeze(2)
