"""Trains the VAE: the engine's encoder and decoder together.

Noise is added to the latents in training, so that the decoder tolerates the small errors of sampling.
"""

import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from engine.models.vae import AttentionBlock, Decoder, ResnetBlock, Upsample, VAEConfig
from engine.models.vae_encoder import Downsample, Encoder
from models.training import pairs, progress
from models.training.drawing import draw_scene
from models.training.pairs import random_boxed_pair, random_pair
from models.training.scenes import COLOURS, RGB, Scene, random_boxed, random_single
from models.training.words import random_boxed_word, random_word

CONFIG = VAEConfig(
    latent_channels=12, block_out_channels=(12, 24, 48, 64), layers_per_block=1, norm_num_groups=4
)
# (steps, images per batch, side of the crops or None for whole images): cheap small crops first
PHASES: tuple[tuple[int, int, int | None], ...] = ((1500, 16, 48), (250, 16, 64), (100, 4, None))
STEPS = sum(steps for steps, _, _ in PHASES)
LEARNING_RATE = 3e-3
SAVE_EVERY = 250
NOISE = 0.3
SIZES = ((128, 128), (96, 96), (64, 64), (128, 96), (96, 128))


class WholeEncoder(Encoder):
    """The engine's encoder without the pauses between its blocks."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.finish(x)


class WholeDecoder(Decoder):
    """The engine's decoder without the pauses between its blocks."""

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class TrainedVAE(nn.Module):
    """Encoder and decoder with the parameter names of the checkpoint."""

    def __init__(self, config: VAEConfig = CONFIG) -> None:
        super().__init__()
        channels = config.latent_channels
        self.encoder = WholeEncoder(config)
        self.decoder = WholeDecoder(config)
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.post_quant_conv = nn.Conv2d(channels, channels, 1)
        self.bn = nn.BatchNorm2d(4 * channels, eps=config.batch_norm_eps, affine=False)

    def encode(self, x: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] to the mean of the latents (B, C, H / 8, W / 8)."""
        mean: Tensor = self.quant_conv(self.encoder(x)).chunk(2, dim=1)[0]
        return mean

    def decode(self, z: Tensor) -> Tensor:
        """Latents to pixels of about [-1, 1]."""
        pixels: Tensor = self.decoder(self.post_quant_conv(z))
        return pixels


@torch.no_grad()
def start_linear(vae: TrainedVAE) -> None:
    """Initialise a nearly linear autoencoder; the default initialisation learns too slowly."""
    channels = CONFIG.latent_channels
    for module in vae.modules():
        if isinstance(module, ResnetBlock):
            nn.init.zeros_(module.conv2.weight)
            if module.conv_shortcut is not None:
                nn.init.orthogonal_(module.conv_shortcut.weight.flatten(1))
        elif isinstance(module, Downsample):
            start_as_identity(module.conv, 0.25, slice(0, 2))
        elif isinstance(module, Upsample):
            start_as_identity(module.conv, 1.0, slice(1, 2))
        elif isinstance(module, AttentionBlock):
            nn.init.zeros_(next(module.to_out.parameters()))
    nn.init.orthogonal_(vae.encoder.conv_in.weight.flatten(1))
    nn.init.dirac_(vae.quant_conv.weight)
    nn.init.dirac_(vae.post_quant_conv.weight)
    vae.quant_conv.weight[channels:] = 0
    assert vae.quant_conv.bias is not None
    nn.init.constant_(vae.quant_conv.bias[channels:], -4.0)  # log-variance: small and constant


def start_as_identity(conv: Any, value: float, taps: slice) -> None:
    """A convolution that at first copies (or averages) each channel, plus a little noise."""
    nn.init.normal_(conv.weight, std=0.02)
    nn.init.zeros_(conv.bias) if conv.bias is not None else None
    for channel in range(conv.weight.shape[0]):
        conv.weight[channel, channel, taps, taps] += value


def pixels(image: Image.Image) -> Tensor:
    """An RGB image as (3, H, W) in [-1, 1]."""
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, 3).permute(2, 0, 1).float() / 127.5 - 1


def random_scene(rng: random.Random, width: int, height: int) -> Scene:
    """A random scene: a single element in 60% of cases, a word, or two elements if the image has room."""
    chance = rng.random()
    if chance < 0.2 and (width, height) == (pairs.SIDE, pairs.SIDE):
        return rng.choice((random_pair, random_boxed_pair))(rng)
    if chance < 0.4:
        return rng.choice((random_word, random_boxed_word))(rng, width, height)
    return rng.choice((random_single, random_boxed))(rng, width, height, letters=0.55)


def random_palette(rng: random.Random) -> dict[str, RGB]:
    """The palette, or random colours in 20% of cases."""
    if rng.random() < 0.8:
        return COLOURS
    return {name: (rng.randrange(256), rng.randrange(256), rng.randrange(256)) for name in COLOURS}


def crop(rng: random.Random, image: Image.Image, scene: Scene, side: int) -> Image.Image:
    """A square crop that shows part of an element."""
    element = rng.choice(scene.elements)
    reach = element.side // 2
    wide = reach * len(element.name) if element.kind == "word" else reach
    x = element.cx + rng.randint(-wide, wide) - side // 2
    y = element.cy + rng.randint(-reach, reach) - side // 2
    left, top = max(0, min(image.width - side, x)), max(0, min(image.height - side, y))
    return image.crop((left, top, left + side, top + side))


def random_batch(rng: random.Random, count: int, side: int | None) -> Tensor:
    """Images (B, 3, H, W): crops of a side, or whole images of one random size."""
    fixed = rng.choice(SIZES)
    images = []
    for _ in range(count):
        size = fixed if side is None else rng.choice(SIZES)
        scene = random_scene(rng, *size)
        image = draw_scene(scene, random_palette(rng))
        images.append(pixels(image if side is None else crop(rng, image, scene, side)))
    return torch.stack(images).contiguous(memory_format=torch.channels_last)


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences between adjacent pixels along both axes."""
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """The sum of L1, squared and edge errors."""
    error = output - target
    edge = sum(e.abs().mean() for e in edges(error))
    return error.abs().mean() + error.square().mean() + 0.5 * edge


def learning_rate(step: int) -> float:
    """Warm up, hold, then fall to 1%."""
    fall = (STEPS - step) / (STEPS * 0.5)
    return LEARNING_RATE * min(1.0, (step + 1) / 40, max(0.01, fall))


def phase(step: int) -> tuple[int, int | None]:
    """(images per batch, side of the crops) of a step."""
    for steps, count, side in PHASES:
        if step < steps:
            return count, side
        step -= steps
    return PHASES[-1][1:]


def train_step(vae: TrainedVAE, images: Tensor) -> Tensor:
    """The loss of one batch."""
    latents = vae.encode(images)
    sigma = torch.rand(len(images), 1, 1, 1) * NOISE
    output = vae.decode(latents + sigma * torch.randn_like(latents))
    return reconstruction_loss(output, images) + 5e-4 * latents.square().mean()


def fit_normalisation(vae: TrainedVAE) -> None:
    """Set `bn` to the mean and variance of each latent channel, repeated for the four patch positions."""
    rng = random.Random(99)
    latents = [vae.encode(random_batch(rng, 16, None)).transpose(0, 1).flatten(1) for _ in range(32)]
    flat = torch.cat(latents, dim=1)
    vae.bn.running_mean = flat.mean(1).repeat(4)
    vae.bn.running_var = flat.var(1).repeat(4)


def fit(work: Path, shown: bool = True) -> None:
    """Train from the last saved state to the end and write `vae.pt` to the work directory."""
    final, partial = work / "vae.pt", work / "vae.partial.pt"
    if final.exists():
        return
    torch.manual_seed(0)
    vae = TrainedVAE()
    start_linear(vae)
    vae = vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(vae.parameters(), betas=(0.9, 0.99), weight_decay=1e-4)
    done = 0
    if state := progress.load(partial):
        vae.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        done = state["step"]
    bar = progress.Progress("vae", STEPS, done, shown)
    for step in range(done, STEPS):
        rng = random.Random(f"vae {step}")
        torch.manual_seed(step)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step)
        loss = train_step(vae, random_batch(rng, *phase(step)))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        bar.step(loss=loss.item())
        if (step + 1) % SAVE_EVERY == 0:
            state = {"model": vae.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1}
            progress.save(partial, state)
    bar.close()
    with torch.no_grad():
        fit_normalisation(vae)
    progress.save(final, {"model": vae.state_dict()})
