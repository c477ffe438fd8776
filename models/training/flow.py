"""The longest stage: trains both DiTs to predict the velocity from noise to latents, in two processes."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen3VLTextModel

from models.training import dit, pool, progress, text
from models.training.optimiser import Optimiser
from models.training.pool import BUCKETS, Bucket

STEPS = 11_000
LEARNING_RATE = 2e-3
HOLD = 0.48  # fraction of the steps before the learning rate falls
NARROW = 0.25  # fraction of the steps that see only small images
UNCONDITIONAL_EVERY = 6
SAVE_EVERY = 100
EMA = 0.998
# bucket -> fraction of the steps: in the NARROW part, after it
SHARES: dict[str, tuple[float, float]] = {
    "tiny": (0.15, 0.02),
    "small": (0.60, 0.04),
    "small caption": (0.25, 0.03),
    "short": (0.0, 0.48),
    "caption": (0.0, 0.22),
    "pair caption": (0.0, 0.12),
    "oblong": (0.0, 0.06),
    "oblong caption": (0.0, 0.03),
}


@dataclass(frozen=True)
class Batch:
    """Latents (B, N, C), outlines (B, N, 32) in 0..1, ids (B, T), lengths (B,), grid."""

    latents: Tensor
    outlines: Tensor
    ids: Tensor
    lengths: Tensor
    grid: tuple[int, int]


class Pictures:
    """The shards of the pool that belong to this process, loaded on first use."""

    def __init__(self, work: Path, rank: int, world: int) -> None:
        self.work, self.rank, self.world = work, rank, world
        self.shards: dict[str, list[dict[str, Tensor]]] = {}

    def open(self, bucket: Bucket) -> list[dict[str, Tensor]]:
        """The bucket's shards of this process; all of them if it has none of its own."""
        if bucket.name not in self.shards:
            paths = [pool.shard_path(self.work, bucket, n) for n in range(bucket.shards)]
            own = paths[self.rank :: self.world] or paths
            self.shards[bucket.name] = [torch.load(path, weights_only=True) for path in own]
        return self.shards[bucket.name]

    def batch(self, rng: random.Random, bucket: Bucket) -> Batch:
        """Random samples of one shard."""
        shard = rng.choice(self.open(bucket))
        index = torch.tensor(rng.sample(range(len(shard["ids"])), bucket.count))
        rows, columns = shard["grid"].tolist()
        return Batch(
            shard["latents"][index].float(),
            shard["outlines"][index].float() / 255,
            shard["ids"][index].long(),
            shard["lengths"][index].long(),
            (rows, columns),
        )


def choose_bucket(step: int, steps: int) -> Bucket:
    """The bucket of a step, which is the same in all processes."""
    late = step >= NARROW * steps
    shares = [SHARES[bucket.name][late] for bucket in BUCKETS]
    return random.Random(f"bucket {step}").choices(BUCKETS, shares)[0]


def learning_rate(step: int, steps: int) -> float:
    """Warm up, hold, fall linearly."""
    fall = (steps - step) / (steps * (1 - HOLD))
    return LEARNING_RATE * min(1.0, (step + 1) / 60, max(0.01, fall))


def random_times(count: int) -> Tensor:
    """Times (B,): mostly noisy ones, which decide the outline, and 15% uniform."""
    times = torch.sigmoid(torch.randn(count) * 1.3 - 0.6)
    return torch.where(torch.rand(count) < 0.15, torch.rand(count), times)


def token_weights(outlines: Tensor) -> Tensor:
    """Loss weights (B, N, 1) of mean 1: drawn tokens count twice, tokens with an edge four times.

    outlines (B, N, 32), of two elements.
    """
    cells = outlines.unflatten(-1, (2, -1))
    high, low = cells.amax(-1), cells.amin(-1)
    weights = 1 + (high > 0.05).any(-1).float() + 2 * (high - low > 0.2).any(-1).float()
    return (weights / weights.mean()).unsqueeze(-1)


def average_gradients(parameters: list[nn.Parameter], world: int) -> None:
    """Average the gradients over the processes, then clip them."""
    for p in parameters:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    if world > 1:
        flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        dist.all_reduce(flat)
        for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad = (part / world).view_as(p)
    nn.utils.clip_grad_norm_(parameters, 1.0)


class Learner:
    """A DiT, its optimiser and its moving average."""

    def __init__(self, model: nn.Module, rank: int, world: int) -> None:
        self.model, self.world = model, world
        self.named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.parameters = list(self.named.values())
        self.optimiser = Optimiser(model, rank, world)
        self.average = [p.detach().clone() for p in self.parameters]
        self.steps = 0

    def update(self, rate: float) -> None:
        """Update the parameters from their gradients, then clear these."""
        average_gradients(self.parameters, self.world)
        self.optimiser.step(rate)
        self.model.zero_grad()
        self.steps += 1
        decay = min(EMA, (self.steps + 1) / (self.steps + 20))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)

    def averaged(self) -> dict[str, Tensor]:
        """The moving average by parameter name."""
        return dict(zip(self.named, self.average, strict=True))

    def state(self) -> dict[str, Any]:
        state = {"model": self.model.state_dict(), "average": self.averaged(), "steps": self.steps}
        return state | {"optimiser": self.optimiser.state()}

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimiser.restore(state["optimiser"])
        self.average = list(state["average"].values())
        self.steps = state["steps"]


def read_text_model(work: Path) -> Qwen3VLTextModel:
    """The trained text model with its weights rounded as the checkpoint stores them."""
    model = text.build()
    state = progress.load(work / "text.pt")
    assert state is not None
    model.load_state_dict(state["model"])
    return model.bfloat16().float().requires_grad_(False)


def drawing_loss(
    velocity: Tensor, logits: Tensor, target: Tensor, outlines: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the total loss, the velocity error of each sample (B,) and the outline's loss."""
    error = (velocity - target).square().mean(-1, keepdim=True)
    outline = F.binary_cross_entropy_with_logits(logits, outlines)
    return (error * token_weights(outlines)).mean() + outline, error.detach().mean((1, 2)), outline


def noise_batch(latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return noised latents, times (B,) and target velocities."""
    t, noise = random_times(len(latents)), torch.randn_like(latents)
    mix = t.view(-1, 1, 1)
    return (1 - mix) * noise + mix * latents, t, latents - noise


class Learners:
    """Both DiTs; the unconditional one trains every UNCONDITIONAL_EVERY steps."""

    def __init__(self, work: Path, rank: int, world: int) -> None:
        self.text = read_text_model(work)
        self.conditional = Learner(dit.build(dit.CONDITIONAL, seed=2), rank, world)
        self.unconditional = Learner(dit.build(dit.UNCONDITIONAL, seed=3), rank, world)

    @property
    def all(self) -> list[Learner]:
        return [self.conditional, self.unconditional]

    def step(self, batch: Batch, step: int, rate: float) -> dict[str, float]:
        """Run one step and return the figures to show."""
        noised, t, target = noise_batch(batch.latents)
        with torch.no_grad():
            features = text.text_features(self.text, batch.ids)
        velocity, logits = self.conditional.model(noised, t, batch.grid, features, batch.lengths)
        loss, errors, outline = drawing_loss(velocity, logits, target, batch.outlines)
        loss.backward()
        self.conditional.update(rate)
        if step % UNCONDITIONAL_EVERY == 0:
            velocity, _ = self.unconditional.model(noised, t, batch.grid, None, None)
            (velocity - target).square().mean().backward()
            self.unconditional.update(rate)
        noisy = errors[t < 0.4].mean().item()
        return {"loss": errors.mean().item(), "noisy": noisy, "outline": outline.item()}


def fit(work: Path, rank: int, world: int, steps: int = STEPS, shown: bool = True) -> None:
    """Train from the last saved state to the end and write `dit.pt` to the work directory."""
    final, partial = work / "dit.pt", work / "dit.partial.pt"
    if final.exists():
        return
    learners, pictures = Learners(work, rank, world), Pictures(work, rank, world)
    done = 0
    if state := progress.load(partial):
        for learner, saved in zip(learners.all, state["learners"], strict=True):
            learner.restore(saved)
        done = state["step"]
    bar = progress.Progress("dit", steps, done, shown)
    for step in range(done, steps):
        torch.manual_seed(step * world + rank)
        bucket = choose_bucket(step, steps)
        batch = pictures.batch(random.Random(f"dit {rank} {step}"), bucket)
        rate = learning_rate(step, steps)
        bar.step(**learners.step(batch, step, rate))
        if rank == 0 and (step + 1) % SAVE_EVERY == 0:
            progress.save(partial, {"learners": [x.state() for x in learners.all], "step": step + 1})
    bar.close()
    if rank == 0:
        names = ("conditional", "unconditional")
        progress.save(final, {name: x.averaged() for name, x in zip(names, learners.all, strict=True)})
