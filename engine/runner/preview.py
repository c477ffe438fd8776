"""Previews of an unfinished image without the VAE: a linear map from latents to RGB."""

import torch
from torch import Tensor

from engine.checkpoint.latents import LatentRGB
from engine.checkpoint.loader import Pipeline
from engine.models.vae import VAE

_FIT_SIZE = 8  # latents, each side
_FIT_IMAGES = 16


class PreviewMap:
    """Tokens (N, 4c) times weight (4c, 12) plus bias (12,): RGB in 0..255 of each token's 2 x 2 latents."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight = weight
        self.bias = bias

    @classmethod
    @torch.inference_mode()
    def of(cls, pipeline: Pipeline) -> "PreviewMap":
        """Uses the checkpoint's own map, else least squares over the VAE's decodings of random latents.

        The latent norm (4c,) is folded in.
        """
        norm, c = pipeline.latent_norm, pipeline.vae.config.latent_channels
        scales, shifts = norm.scale.view(4, c), norm.shift.view(4, c)
        rgb = pipeline.latent_rgb or _fit_rgb(pipeline.vae, scales.mean(0), shifts.mean(0))
        weight = torch.block_diag(*(rgb.weight * each.unsqueeze(1) for each in scales))
        bias = torch.cat([each @ rgb.weight + rgb.bias for each in shifts])
        return cls(weight * 127.5, (bias + 1) * 127.5)

    def __call__(self, tokens: Tensor, rows: int, columns: int) -> Tensor:
        """Clean tokens (rows * columns, 4c) -> uint8 pixels (2 * rows, 2 * columns, 3), one per latent."""
        pixels = torch.addmm(self.bias, tokens, self.weight).clamp(0, 255).round().to(torch.uint8)
        squares = pixels.view(rows, columns, 2, 2, 3)
        return squares.transpose(1, 2).reshape(2 * rows, 2 * columns, 3)


def _fit_rgb(vae: VAE, std: Tensor, mean: Tensor) -> LatentRGB:
    """Fits the map on flat and noisy VAE latents around `mean`."""
    c = vae.config.latent_channels
    generator = torch.Generator("cpu").manual_seed(0)
    flat = torch.randn(_FIT_IMAGES, c, 1, 1, generator=generator)
    noise = torch.randn(_FIT_IMAGES, c, _FIT_SIZE, _FIT_SIZE, generator=generator)
    z = (flat + 0.5 * noise).to(mean.device) * std.view(1, c, 1, 1) + mean.view(1, c, 1, 1)
    pixels = vae.decode(z).float().clamp(-1, 1)
    rgb = torch.nn.functional.avg_pool2d(pixels, vae.config.scale_factor)
    return least_squares(z.movedim(1, -1).flatten(0, -2), rgb.movedim(1, -1).flatten(0, -2))


def least_squares(latents: Tensor, rgb: Tensor) -> LatentRGB:
    """Least-squares map from latents (N, c) to rgb (N, 3)."""
    inputs = torch.cat((latents, torch.ones_like(latents[:, :1])), dim=1)
    solution = torch.linalg.lstsq(inputs.cpu(), rgb.cpu()).solution.to(latents.device)
    return LatentRGB(solution[:-1], solution[-1])
