"""Image to image with diffusers' text-to-image pipeline of Ideogram 4: from given latents, at a late step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from engine.request import SamplingParams
from engine.runner.image_codec import patchify
from engine.runner.sampling import add_noise, initial_noise, time_schedule


@contextmanager
def late_schedule(scheduler: Any, first_step: int) -> Iterator[None]:
    """Within, the scheduler of diffusers leaves out the steps before `first_step`."""
    original: Callable[..., None] = scheduler.set_timesteps

    def set_timesteps(sigmas: list[float], device: Any) -> None:
        original(sigmas=sigmas[first_step:], device=device)

    with patch.object(scheduler, "set_timesteps", set_timesteps):
        yield


@torch.inference_mode()
def late_latents(
    pipeline: Any, rgb: bytes, side: int, sampling: SamplingParams, first_step: int, seed: int
) -> Tensor:
    """The encoded source (1, N, C) with the noise of the seed at the level of `first_step`."""
    vae = pipeline.vae
    pixels = torch.frombuffer(bytearray(rgb), dtype=torch.uint8).view(side, side, 3)
    scaled = pixels.permute(2, 0, 1).unsqueeze(0).to(vae.device, vae.dtype) / 127.5 - 1
    tokens = patchify(vae.encode(scaled).latent_dist.mode()[0].float())
    std = torch.sqrt(vae.bn.running_var.float() + vae.config.batch_norm_eps)
    data = (tokens - vae.bn.running_mean.float()) / std
    times = time_schedule(sampling.num_inference_steps, side, side, sampling.mu, sampling.std)
    noise = initial_noise(seed, *data.shape).to(data.device)
    return add_noise(data, noise, float(times[first_step])).unsqueeze(0)
