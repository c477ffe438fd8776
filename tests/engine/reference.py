"""The published algorithm, written plainly around diffusers' modules: one sample, padded, a dense mask.

diffusers' own pipeline ends its last step at t = 1; the published sampler ends it where the schedule is
clamped. That is the only difference between `sample` here and `Ideogram4Pipeline`.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from diffusers import Ideogram4Pipeline
from numpy.typing import NDArray
from torch import Tensor

Pixels = NDArray[np.uint8]
# More than the prompt has, so that padding is in play.
PADDING = 5


@dataclass(frozen=True)
class Job:
    """One image to make; sizes in pixels, one guidance value per step in the order of sampling."""

    prompt: str
    width: int
    height: int
    guidance: tuple[float, ...]
    mu: float = 0.5
    std: float = 1.75
    seed: int = 5

    @property
    def grid(self) -> tuple[int, int]:
        return self.height // 16, self.width // 16


@dataclass(frozen=True)
class Edit:
    """The source of a job: RGB (height, width, 3), and with a mask (height, width) what is painted."""

    rgb: Pixels
    strength: float
    mask: Pixels | None = None


def schedule(job: Job) -> list[float]:
    """Model times from noise (0) to data (1), one more than there are steps."""
    mu = job.mu + 0.5 * math.log(job.width * job.height / 512**2)
    steps = len(job.guidance)
    return [_time(1 - step / steps, mu, job.std) for step in range(steps + 1)]


def _time(u: float, mu: float, std: float) -> float:
    lowest, highest = 1 / (1 + math.exp(9)), 1 / (1 + math.exp(-7.5))
    if u in (0, 1):
        return highest if u == 0 else lowest
    return min(max(1 / (1 + math.exp(mu + std * NormalDist().inv_cdf(u))), lowest), highest)


def count_tokens(referee: Any, prompt: str) -> int:
    return len(token_ids(referee, prompt))


def token_ids(referee: Any, prompt: str) -> list[int]:
    messages = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
    text = referee.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids: list[int] = referee.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@torch.no_grad()
def text_features(referee: Any, ids: list[int]) -> Tensor:
    """(L, hidden * taps) float32 of one prompt's ids."""
    tokens = torch.tensor([ids])
    positions = torch.arange(len(ids)).unsqueeze(0)
    tapped = referee._get_text_encoder_hidden_states(
        referee.text_encoder, tokens, torch.ones_like(tokens), positions
    )
    return torch.stack(tapped, dim=-1)[0].flatten(1)


@torch.no_grad()
def velocity(transformer: Any, latents: Tensor, t: float, features: Tensor | None, grid: Any) -> Tensor:
    """(N, C) of one sample's image tokens; without features the unconditional pass."""
    length = 0 if features is None else len(features)
    padded = length + PADDING if length else 0
    rows = padded + len(latents)
    width = transformer.config.llm_features_dim
    cpu = torch.device("cpu")
    positions, segments, indicator = Ideogram4Pipeline._prepare_ids([length], *grid, padded, cpu)
    text = torch.zeros(1, rows, width)
    if features is not None:
        text[0, PADDING:padded] = features
    image = torch.zeros(1, rows, latents.shape[1])
    image[0, padded:] = latents
    predicted: Tensor = transformer(
        hidden_states=image,
        timestep=torch.tensor([t]),
        encoder_hidden_states=text,
        position_ids=positions,
        segment_ids=segments,
        indicator=indicator,
        return_dict=False,
    )[0]
    return predicted[0, padded:]


def noise(job: Job, channels: int) -> Tensor:
    rows, columns = job.grid
    generator = torch.Generator("cpu").manual_seed(job.seed)
    return torch.randn(1, rows * columns, channels, generator=generator)[0]


def sample(referee: Any, job: Job, edit: Edit | None = None) -> Tensor:
    """Final latents (N, C)."""
    features = text_features(referee, token_ids(referee, job.prompt))
    eps = noise(job, referee.transformer.config.in_channels)
    known = _known(referee, edit, eps, schedule(job)) if edit else [eps]
    painted = weights(edit.mask, eps.shape[1]) if edit and edit.mask is not None else 1
    steps = len(job.guidance)
    first = int(max(steps - min(steps * edit.strength, steps), 0)) if edit else 0
    z, times = known[first], schedule(job)
    for step, weight in list(enumerate(job.guidance))[first:]:
        t, s = times[step], times[step + 1]
        conditional = velocity(referee.transformer, z, t, features, job.grid)
        unconditional = velocity(referee.unconditional_transformer, z, t, None, job.grid)
        z = z + (weight * conditional + (1 - weight) * unconditional) * (s - t)
        if edit and edit.mask is not None:
            z = painted * z + (1 - painted) * known[step + 1]
    return z


def _known(referee: Any, edit: Edit, eps: Tensor, times: list[float]) -> list[Tensor]:
    """The source with the noise of each time; the ends are noise alone and the source alone."""
    data = encode(referee, edit.rgb)
    return [(1 - t) * eps + t * data for t in (0.0, *times[1:-1], 1.0)]


def weights(mask: Pixels, channels: int) -> Tensor:
    """(N, C): what of each latent a mask paints, by the greatest of its 8 x 8 pixels."""
    height, width = mask.shape
    latents = mask.reshape(height // 8, 8, width // 8, 8).max(axis=(1, 3)) / np.float32(255)
    patches = latents.reshape(height // 16, 2, width // 16, 2).transpose(0, 2, 1, 3).reshape(-1, 4)
    return torch.from_numpy(patches.repeat(channels // 4, axis=1))


@torch.no_grad()
def encode(referee: Any, rgb: Pixels) -> Tensor:
    """Latents (N, C) of an image: the inverse of `decode`."""
    vae, (height, width, _) = referee.vae, rgb.shape
    pixels = torch.from_numpy(rgb.astype(np.float32)).permute(2, 0, 1).unsqueeze(0) / 127.5 - 1
    z = vae.encode(pixels).latent_dist.mode()[0].view(-1, height // 16, 2, width // 16, 2)
    std = torch.sqrt(vae.bn.running_var + vae.config.batch_norm_eps)
    tokens = z.permute(1, 3, 2, 4, 0).reshape(height // 16 * (width // 16), -1)
    return (tokens - vae.bn.running_mean) / std


@torch.no_grad()
def decode(referee: Any, latents: Tensor, grid: tuple[int, int]) -> Any:
    """RGB (height, width, 3) uint8 of final latents."""
    vae, (rows, columns) = referee.vae, grid
    std = torch.sqrt(vae.bn.running_var + vae.config.batch_norm_eps)
    z = (latents * std + vae.bn.running_mean).view(rows, columns, 2, 2, -1)
    pixels = vae.decode(z.permute(4, 0, 2, 1, 3).reshape(1, -1, 2 * rows, 2 * columns)).sample[0]
    return np.asarray(((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0))
