"""Small pictures of an image in the making, without the VAE: a linear map from latents to RGB."""

import torch
from torch import Tensor

from engine.models.vae import VAE

_FIT_SIZE = 8  # latents, each side
_FIT_IMAGES = 16


class PreviewMap:
    """RGB in [-1, 1] as weight (3, c) times VAE latents plus bias (3,), one pixel per latent."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight = weight
        self.bias = bias

    @classmethod
    @torch.inference_mode()
    def fit(cls, vae: VAE, scale: Tensor, shift: Tensor) -> "PreviewMap":
        """Least squares over the VAE's own decodings of random latents, flat ones and noisy ones.

        scale and shift: the latent norm, (4c,); its four patch positions are averaged.
        """
        c = vae.config.latent_channels
        generator = torch.Generator("cpu").manual_seed(0)
        flat = torch.randn(_FIT_IMAGES, c, 1, 1, generator=generator)
        noise = torch.randn(_FIT_IMAGES, c, _FIT_SIZE, _FIT_SIZE, generator=generator)
        mean, std = shift.view(4, c).mean(0), scale.view(4, c).mean(0)
        z = (flat + 0.5 * noise).to(mean.device) * std.view(1, c, 1, 1) + mean.view(1, c, 1, 1)
        pixels = vae.decode(z.to(vae.decoder.conv_in.weight.dtype)).float().clamp(-1, 1)
        rgb = torch.nn.functional.avg_pool2d(pixels, vae.config.scale_factor)
        inputs = torch.cat((z, torch.ones_like(z[:, :1])), dim=1).movedim(1, -1).flatten(0, -2)
        solution = torch.linalg.lstsq(inputs.cpu(), rgb.movedim(1, -1).flatten(0, -2).cpu()).solution
        return cls(solution[:-1].T.to(z.device), solution[-1].to(z.device))

    def __call__(self, z: Tensor) -> Tensor:
        """VAE latents (c, h, w) -> uint8 pixels (h, w, 3)."""
        rgb = torch.einsum("oc,chw->hwo", self.weight, z) + self.bias
        return ((rgb.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
