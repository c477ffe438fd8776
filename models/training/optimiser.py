"""Muon for the matrices of the blocks, AdamW for the rest. The processes share Muon's work."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

STEP_SIZE = 0.5  # RMS of a matrix update at rate 1; about 0.2 for an Adam step
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(g: Tensor) -> Tensor:
    """Approximate the nearest semi-orthogonal matrices to (M, R, C), R <= C, by five Newton-Schulz steps."""
    a, b, c = COEFFICIENTS
    x = g / (g.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class Optimiser:
    """Updates one model, whose gradients must already be averaged over the processes."""

    def __init__(self, model: nn.Module, rank: int, world: int) -> None:
        self.rank, self.world = rank, world
        self.matrices: list[Tensor] = []
        self.others: list[Tensor] = []
        for name, parameter in model.named_parameters():
            block = name.startswith("layers.") and parameter.dim() == 2 and "adaln" not in name
            (self.matrices if block else self.others).append(parameter)
        self.momenta = [torch.zeros_like(p) for p in self.matrices]
        self.adam = torch.optim.AdamW(self.others, betas=(0.9, 0.98), weight_decay=0.01)

    def state(self) -> dict[str, object]:
        return {"adam": self.adam.state_dict(), "momenta": self.momenta}

    def restore(self, state: dict[str, object]) -> None:
        self.adam.load_state_dict(state["adam"])  # type: ignore[arg-type]
        self.momenta = list(state["momenta"])  # type: ignore[call-overload]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update all parameters once."""
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        for parameter, update in zip(self.matrices, self.directions(), strict=True):
            scale = STEP_SIZE * max(parameter.shape) ** 0.5
            parameter.mul_(1 - rate * 0.02).add_(update, alpha=-rate * scale)

    def directions(self) -> list[Tensor]:
        """The update direction of each matrix. Each process computes its share."""
        updates = [torch.zeros_like(p) for p in self.matrices]
        shares: dict[torch.Size, list[int]] = {}
        for index, parameter in enumerate(self.matrices):
            assert parameter.grad is not None
            self.momenta[index].lerp_(parameter.grad, 0.05)
            if index % self.world == self.rank:
                shares.setdefault(parameter.shape, []).append(index)
        for shape, indices in shares.items():
            tall = shape[0] > shape[1]
            wide = [self.matrices[i].grad.lerp(self.momenta[i], 0.95) for i in indices]  # type: ignore[union-attr]
            stack = torch.stack([g.T if tall else g for g in wide])
            for i, update in zip(indices, orthogonalise(stack), strict=True):
                updates[i].copy_(update.T if tall else update)
        if self.world > 1 and updates:
            flat = torch.cat([u.flatten() for u in updates])
            dist.all_reduce(flat)
            parts = flat.split([u.numel() for u in updates])
            updates = [part.view_as(u) for part, u in zip(parts, updates, strict=True)]
        return updates
