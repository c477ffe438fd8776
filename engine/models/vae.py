"""The KL VAE's decoder (`AutoencoderKLFlux2` in diffusers): latents to pixels.

Activations are (B, C, h, w). `vae_encoder` is the other half.
"""

from collections.abc import Callable, Generator, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.config.part_configs import VAEConfig
from engine.memory.bounds import MAX_WHOLE_AREA, STRIP_ELEMENTS
from engine.models.resumable import drain

# A generator that yields between parts, so that other work can run, and returns the result.
Parts = Generator[None, None, Tensor]


class ResnetBlock(nn.Module):
    """Norm, SiLU and convolution, twice, with a shortcut."""

    def __init__(self, channels_in: int, channels_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels_in, eps=1e-6)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, channels_out, eps=1e-6)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + self.shortcut(x)

    def shortcut(self, x: Tensor) -> Tensor:
        return x if self.conv_shortcut is None else self.conv_shortcut(x)


class AttentionBlock(nn.Module):
    """Single-head self-attention over all positions."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, h * w, C)
        q, k, v = (proj(tokens).unsqueeze(1) for proj in (self.to_q, self.to_k, self.to_v))
        attended = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        return x + self.to_out[0](attended).transpose(1, 2).unflatten(2, x.shape[2:])


class MidBlock(nn.Module):
    def __init__(self, channels: int, config: VAEConfig) -> None:
        super().__init__()
        groups = config.norm_num_groups
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, groups) for _ in range(2))
        attention = [AttentionBlock(channels, groups)] if config.mid_block_add_attention else []
        self.attentions = nn.ModuleList(attention)

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class Upsample(nn.Module):
    """Twice the size, nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.enlarge(x))

    @staticmethod
    def enlarge(x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")


class UpBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, upsample: bool, config: VAEConfig) -> None:
        super().__init__()
        layers, groups = config.layers_per_block + 1, config.norm_num_groups
        self.resnets = nn.ModuleList(
            ResnetBlock(channels_in if i == 0 else channels_out, channels_out, groups) for i in range(layers)
        )
        self.upsamplers = nn.ModuleList([Upsample(channels_out)] if upsample else [])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class Decoder(nn.Module):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        channels = tuple(reversed(config.decoder_channels))
        self.conv_in = nn.Conv2d(config.latent_channels, channels[0], 3, padding=1)
        self.mid_block = MidBlock(channels[0], config)
        self.up_blocks = nn.ModuleList(
            UpBlock(channels[max(i - 1, 0)], channels[i], i < len(channels) - 1, config)
            for i in range(len(channels))
        )
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, channels[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(channels[-1], config.out_channels, 3, padding=1)

    def decode_whole(self, x: Tensor) -> Parts:
        """The mid block's output to pixels."""
        for block in self.up_blocks:
            x = block(x)
            yield
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class VAE(nn.Module):
    """Decodes latents (B, C, h, w) of any dtype to pixels (B, 3, h * scale, w * scale), about [-1, 1]."""

    max_whole_area = MAX_WHOLE_AREA  # more latents are decoded in strips

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.latent_channels
        self.post_quant_conv = nn.Conv2d(channels, channels, 1) if config.use_post_quant_conv else None
        self.decoder = Decoder(config)

    def decode(self, z: Tensor) -> Tensor:
        return drain(self.decode_parts(z))

    def decode_parts(self, z: Tensor) -> Parts:
        """Like `decode`, yielding after each block or strip."""
        # The memory format of the weights, which every layer preserves.
        z = z.to(self.decoder.conv_in.weight.dtype, memory_format=torch.channels_last)
        x = self.decoder.conv_in(z if self.post_quant_conv is None else self.post_quant_conv(z))
        x = self.decoder.mid_block(x)
        yield
        if z[:, 0].numel() > self.max_whole_area:
            return (yield from decode_strips(self.decoder, x))
        return (yield from self.decoder.decode_whole(x))


def decode_strips(decoder: Decoder, x: Tensor, strip_elements: int = STRIP_ELEMENTS) -> Parts:
    """`decoder.decode_whole` in a fraction of the memory; overwrites `x`.

    Activations are whole between layers; within a layer (norm, SiLU, upsampling, convolution) only a strip of
    rows exists at a time. GroupNorm uses the statistics of the whole activation and a convolution reads one
    row beyond its strip, so the result is exact and has no seams. Peak memory is 1.5 times the widest
    activation: 3.6 GB for the published VAE at 2048 x 2048 in bfloat16, instead of 6.4 GB.
    """
    for layer in decoder.up_blocks.modules():  # in the order they run
        if isinstance(layer, ResnetBlock):
            x = yield from resnet_strips(layer, x, strip_elements)
        elif isinstance(layer, Upsample):
            x = yield from convolve_strips(layer.conv, x, layer.enlarge, strip_elements, scale=2)
    activate = _norm_silu(decoder.conv_norm_out, x)
    return (yield from convolve_strips(decoder.conv_out, x, activate, strip_elements))


def resnet_strips(block: ResnetBlock, x: Tensor, strip_elements: int) -> Parts:
    """Writes the result over `x`: each of its rows needs only the same row of `x`."""
    h = yield from convolve_strips(block.conv1, x, _norm_silu(block.norm1, x), strip_elements)
    out = x[:, : h.shape[1]] if h.shape[1] <= x.shape[1] else torch.empty_like(h)
    for rows, strip in _strips(block.conv2, h, _norm_silu(block.norm2, h), strip_elements):
        out[:, :, rows] = strip + block.shortcut(x[:, :, rows])
        yield
    return out


Before = Callable[[Tensor], Tensor]


def convolve_strips(conv: nn.Conv2d, x: Tensor, before: Before, strip_elements: int, scale: int = 1) -> Parts:
    """conv(before(x)), where `before` multiplies rows and columns by `scale`."""
    shape = len(x), conv.out_channels, x.shape[2] * scale, x.shape[3] * scale
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    for rows, strip in _strips(conv, x, before, strip_elements, scale):
        out[:, :, rows] = strip
        yield
    return out


def _strips(
    conv: nn.Conv2d, x: Tensor, before: Before, strip_elements: int, scale: int = 1
) -> Iterator[tuple[slice, Tensor]]:
    """Yields conv(before(x)) strip by strip with its rows, computed with one extra row at either end."""
    height = x.shape[2]
    step = max(1, strip_elements // (x[:, :, 0].numel() * scale**2))
    for start in range(0, height, step):
        end = min(start + step, height)
        low, high = max(start - 1, 0), min(end + 1, height)
        strip = conv(before(x[:, :, low:high]))
        yield slice(start * scale, end * scale), strip[:, :, (start - low) * scale : (end - low) * scale]


def _norm_silu(norm: nn.GroupNorm, x: Tensor) -> Before:
    """SiLU(norm(.)) for any part of `x`, with the statistics of the whole; in float32, as GroupNorm is."""
    groups = x.unflatten(1, (norm.num_groups, -1)).unbind(1)
    measured = [torch.var_mean(group.float(), dim=(1, 2, 3), correction=0) for group in groups]
    variance, mean = (torch.stack(each, dim=1) for each in zip(*measured, strict=True))  # (B, groups)
    size = x.shape[1] // norm.num_groups
    scale = torch.rsqrt(variance + norm.eps).repeat_interleave(size, dim=1) * norm.weight.float()
    shift = norm.bias.float() - mean.repeat_interleave(size, dim=1) * scale
    scale, shift = scale[..., None, None], shift[..., None, None]
    return lambda part: F.silu(torch.addcmul(shift, part.float(), scale).to(part.dtype))
