"""The KL VAE's encoder (`AutoencoderKLFlux2` in diffusers): pixels to the mean of the latents.

The log-variance that the encoder also predicts is not used. Activations are (B, C, h, w).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.config.part_configs import VAEConfig
from engine.memory.bounds import STRIP_ELEMENTS
from engine.models.resumable import drain
from engine.models.vae import (
    MidBlock,
    Parts,
    ResnetBlock,
    convolve_strips,
    resnet_strips,
)


class Downsample(nn.Module):
    """Half the size: a convolution with a stride of 2, padded on the right and at the bottom."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class DownBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, downsample: bool, config: VAEConfig) -> None:
        super().__init__()
        groups = config.norm_num_groups
        self.resnets = nn.ModuleList(
            ResnetBlock(channels_in if i == 0 else channels_out, channels_out, groups)
            for i in range(config.layers_per_block)
        )
        self.downsamplers = nn.ModuleList([Downsample(channels_out)] if downsample else [])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class Encoder(nn.Module):
    """Pixels (B, 3, H, W) to mean and log-variance (B, 2C, H / scale, W / scale)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        channels = config.block_out_channels
        self.conv_in = nn.Conv2d(config.out_channels, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownBlock(channels[max(i - 1, 0)], channels[i], i < len(channels) - 1, config)
            for i in range(len(channels))
        )
        self.mid_block = MidBlock(channels[-1], config)
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, channels[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(channels[-1], 2 * config.latent_channels, 3, padding=1)

    def encode_whole(self, x: Tensor) -> Parts:
        """Pixels to the mid block's input."""
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
            yield
        return x

    def finish(self, x: Tensor) -> Tensor:
        """The mid block's input to mean and log-variance."""
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class VAEEncoder(nn.Module):
    """Encodes pixels (B, 3, H, W) in [-1, 1] to the mean of the latents (B, C, H / scale, W / scale)."""

    max_whole_area = 1024 * 1024  # more pixels are encoded in strips

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        channels = 2 * config.latent_channels
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(channels, channels, 1) if config.use_quant_conv else None

    def encode(self, pixels: Tensor) -> Tensor:
        return drain(self.encode_parts(pixels))

    def encode_parts(self, pixels: Tensor) -> Parts:
        """Like `encode`, yielding after each block or strip."""
        # The memory format of the weights, which every layer preserves.
        x = pixels.to(self.encoder.conv_in.weight.dtype, memory_format=torch.channels_last)
        is_large = x[:, 0].numel() > self.max_whole_area
        x = yield from encode_strips(self.encoder, x) if is_large else self.encoder.encode_whole(x)
        moments = self.encoder.finish(x)
        return (moments if self.quant_conv is None else self.quant_conv(moments)).chunk(2, dim=1)[0]


def encode_strips(encoder: Encoder, x: Tensor, strip_elements: int = STRIP_ELEMENTS) -> Parts:
    """`encoder.encode_whole` in a fraction of the memory, as `decode_strips` for the decoder.

    Peak memory is 2.3 times the widest activation: 2.5 GB for the published VAE at 2048 x 2048 in bfloat16,
    instead of 3.2 GB.
    """
    x = yield from convolve_strips(encoder.conv_in, x, lambda part: part, strip_elements)
    for layer in encoder.down_blocks.modules():  # in the order they run
        if isinstance(layer, ResnetBlock):
            x = yield from resnet_strips(layer, x, strip_elements)
        elif isinstance(layer, Downsample):
            x = yield from _downsample_strips(layer.conv, x, strip_elements)
    return x


def _downsample_strips(conv: nn.Conv2d, x: Tensor, strip_elements: int) -> Parts:
    """As `Downsample`. A strip of rows reads one row of the next."""
    rows, columns = x.shape[2] // 2, x.shape[3] // 2
    shape = len(x), conv.out_channels, rows, columns
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    step = max(1, strip_elements // (2 * x[:, :, 0].numel()))
    for start in range(0, rows, step):
        end = min(start + step, rows)
        part = x[:, :, 2 * start : 2 * end + 1]
        missing = 2 * (end - start) + 1 - part.shape[2]
        out[:, :, start:end] = conv(F.pad(part, (0, 1, 0, missing)))
        yield
    return out
