"""The noise schedule, the Euler step and what edits add to both, as pure functions.

Model time t runs from 0 (noise) to 1 (data). The schedule is the published Ideogram 4 sampler's:
a logit-normal quantile function whose mean shifts with the image's size.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Clamps of t as log signal-to-noise: sigmoid(-9) and sigmoid(7.5).
_T_MIN = 1 / (1 + math.exp(9))
_T_MAX = 1 / (1 + math.exp(-7.5))


def time_schedule(num_steps: int, width: int, height: int, mu: float, std: float) -> Tensor:
    """Times (num_steps + 1,) in float64, rising from noise to data; width and height in pixels.

    schedule(u) = clamp(1 - sigmoid(mu' + std * ndtri(u))) at u from 1 down to 0,
    mu' = mu + ln(width * height / 512^2) / 2.
    """
    shifted = mu + 0.5 * math.log(width * height / 512**2)
    u = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    t = 1 - torch.special.expit(shifted + std * torch.special.ndtri(u))
    return t.clamp(_T_MIN, _T_MAX).flip(0)


def initial_noise(seed: int, num_tokens: int, channels: int) -> Tensor:
    """Standard normal noise (num_tokens, channels) in float32, drawn on the CPU: equal on every device."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(1, num_tokens, channels, generator=generator)[0]


def guide(conditional: Tensor, unconditional: Tensor, scale: Tensor) -> Tensor:
    """gw * v_cond + (1 - gw) * v_uncond."""
    return scale * conditional + (1 - scale) * unconditional


def euler_step(latents: Tensor, velocity: Tensor, dt: Tensor) -> Tensor:
    """z + v * dt, in float32."""
    return latents + velocity * dt


def noise_level(times: Tensor, step: int) -> float:
    """Model time before step `step`, or after the last: 0 and 1 at the ends, which the schedule clamps."""
    return {0: 0.0, len(times) - 1: 1.0}.get(step, float(times[step]))


def add_noise(data: Tensor, noise: Tensor, time: float) -> Tensor:
    """(1 - t) * noise + t * data: the data at the noise level of model time t."""
    return (1 - time) * noise + time * data


@dataclass(frozen=True, slots=True)
class EncodedSource:
    """The `latents` (N, C) of a source, and with a mask the weights (N, C), 0..1, of what is `painted`."""

    latents: Tensor
    painted: Tensor | None


@dataclass(frozen=True, slots=True)
class Known:
    """What an inpainted image keeps of its source, `data`, where it is not `painted`: each (N, C)."""

    data: Tensor
    painted: Tensor
    noise: Tensor

    def keep(self, latents: Tensor, time: float) -> Tensor:
        """The latents where they are painted, else the data with the noise of this model time."""
        return torch.lerp(add_noise(self.data, self.noise, time), latents, self.painted)
