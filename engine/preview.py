"""Small pictures of an image in the making, without the VAE: a linear map from latents to RGB."""

import torch
from torch import Tensor

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
    def fit(cls, vae: VAE, scale: Tensor, shift: Tensor) -> "PreviewMap":
        """Least squares over the VAE's own decodings of random latents, flat ones and noisy ones.

        scale and shift: the latent norm, (4c,), folded into the map.
        """
        c = vae.config.latent_channels
        scales, shifts = scale.view(4, c), shift.view(4, c)
        rgb, rgb_bias = _fit_rgb(vae, scales.mean(0), shifts.mean(0))
        weight = torch.block_diag(*(rgb * each.unsqueeze(1) for each in scales))
        bias = torch.cat([each @ rgb + rgb_bias for each in shifts])
        return cls(weight * 127.5, (bias + 1) * 127.5)

    def __call__(self, tokens: Tensor, rows: int, columns: int) -> Tensor:
        """Clean tokens (rows * columns, 4c) -> uint8 pixels (2 * rows, 2 * columns, 3), one per latent."""
        pixels = torch.addmm(self.bias, tokens, self.weight).clamp(0, 255).round().to(torch.uint8)
        squares = pixels.view(rows, columns, 2, 2, 3)
        return squares.transpose(1, 2).reshape(2 * rows, 2 * columns, 3)


def _fit_rgb(vae: VAE, std: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """(c, 3) and (3,) from VAE latents around `mean` to RGB in [-1, 1]."""
    c = vae.config.latent_channels
    generator = torch.Generator("cpu").manual_seed(0)
    flat = torch.randn(_FIT_IMAGES, c, 1, 1, generator=generator)
    noise = torch.randn(_FIT_IMAGES, c, _FIT_SIZE, _FIT_SIZE, generator=generator)
    z = (flat + 0.5 * noise).to(mean.device) * std.view(1, c, 1, 1) + mean.view(1, c, 1, 1)
    pixels = vae.decode(z.to(vae.decoder.conv_in.weight.dtype)).float().clamp(-1, 1)
    rgb = torch.nn.functional.avg_pool2d(pixels, vae.config.scale_factor)
    inputs = torch.cat((z, torch.ones_like(z[:, :1])), dim=1).movedim(1, -1).flatten(0, -2)
    solution = torch.linalg.lstsq(inputs.cpu(), rgb.movedim(1, -1).flatten(0, -2).cpu()).solution
    return solution[:-1].to(z.device), solution[-1].to(z.device)
