"""Loads the model from a checkpoint folder in any of the published layouts.

Every fault of the folder is a CheckpointError that names the file and the key.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from engine.checkpoint.layouts import DIT_SOURCES, dit_layout, same_names
from engine.checkpoint.module_weights import Part
from engine.checkpoint.weight_files import WeightFiles
from engine.config.files import read_json
from engine.config.key_names import UNREAD_OF_TEXT_ENCODER, UNREAD_OF_VAE
from engine.config.part_configs import (
    DiTConfig,
    PartConfigs,
    TextEncoderConfig,
    VAEConfig,
    read_config,
    read_latent_rgb,
)
from engine.config.part_folders import PartFolders
from engine.config.vae_encoder import ENCODER_KEY
from engine.errors import CheckpointError
from engine.models.dit import DiT
from engine.models.text_encoder import TextEncoder
from engine.models.vae import VAE
from engine.models.vae_encoder import VAEEncoder

LATENT_NORM = Path(__file__).parent / "latent_norm.json"
V = TypeVar("V", VAE, VAEEncoder)


@dataclass(frozen=True, slots=True)
class LatentNorm:
    """Maps the DiT's latents to the VAE's: z * scale + shift, each (C,) float32."""

    scale: Tensor
    shift: Tensor


@dataclass(frozen=True, slots=True)
class LatentRGB:
    """Maps a VAE latent (c,) to RGB in [-1, 1]: weight (c, 3), bias (3,)."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The loaded model. `unconditional` is `conditional` if the checkpoint has one transformer (distilled).

    `latent_rgb` is None if the checkpoint contains no map for previews, `vae_encoder` if it has no encoder or
    edits are off. Reading the weights took `load_seconds`; they had `weight_bytes` in memory.
    """

    text_encoder: TextEncoder
    conditional: DiT
    unconditional: DiT
    vae: VAE
    latent_norm: LatentNorm
    latent_rgb: LatentRGB | None = None
    vae_encoder: VAEEncoder | None = None
    load_seconds: float = 0.0
    weight_bytes: int = 0


def load_pipeline(
    folders: PartFolders,
    device: torch.device | str,
    dtype: torch.dtype,
    uncond_device: torch.device | str | None = None,
    edits: bool = True,
    offloads: bool = False,
) -> Pipeline:
    """Load all parts of a model; with `offloads`, the text encoder stays in the memory of the host.

    Raises CheckpointError naming file and key. Configs, keys, shapes and dtypes of all parts are checked
    before the first weight is read. With `edits`, the VAE's encoder is loaded if there is one.
    """
    configs = PartConfigs.read(folders)
    transformer, layout = _open_dit(folders.transformer, configs.transformer)
    separate = _open_unconditional(folders.unconditional, configs.unconditional)
    text_encoder = _open_text_encoder(folders.text_encoder, configs.text_encoder)
    vae = _open_vae(folders.vae, configs.vae)
    vae_encoder = _open_vae_encoder(folders.vae, configs.vae) if edits else None
    norm = _load_latent_norm(folders.vae, configs.vae, layout, device)
    rgb = _load_latent_rgb(folders.vae, configs.vae, device)
    started = time.monotonic()
    conditional = transformer.load(device, dtype)
    unconditional = separate.load(uncond_device or device, dtype) if separate else conditional
    encoder = text_encoder.load("cpu" if offloads else device, dtype)
    decoder = _channels_last(vae.load(device, dtype))
    from_pixels = _channels_last(vae_encoder.load(device, dtype)) if vae_encoder else None
    if offloads:
        encoder.offload(torch.device(device))
    seconds = time.monotonic() - started
    parts = {encoder, conditional, unconditional, decoder, *([from_pixels] if from_pixels else [])}
    pipeline = Pipeline(
        encoder, conditional, unconditional, decoder, norm, rgb, from_pixels, seconds, _weight_bytes(parts)
    )
    _check_vae(folders.vae, pipeline)
    return pipeline


def _weight_bytes(parts: Iterable[nn.Module]) -> int:
    return sum(weight.nbytes for part in parts for weight in part.parameters())


def load_dit(folder: Path, device: torch.device | str, dtype: torch.dtype) -> tuple[DiT, str]:
    """Load a single DiT. Returns it with its layout, "diffusers" or "official"."""
    part, layout = _open_dit(folder, read_config(folder, DiTConfig))
    return part.load(device, dtype), layout


def load_text_encoder(folder: Path, device: torch.device | str, dtype: torch.dtype) -> TextEncoder:
    """Load the text model. The vision tower is not read."""
    return _open_text_encoder(folder, read_config(folder, TextEncoderConfig)).load(device, dtype)


def load_vae(folder: Path, device: torch.device | str, dtype: torch.dtype) -> VAE:
    """Load the decoder. The encoder and the bn statistics in the file are not read."""
    return _channels_last(_open_vae(folder, read_config(folder, VAEConfig)).load(device, dtype))


def load_vae_encoder(folder: Path, device: torch.device | str, dtype: torch.dtype) -> VAEEncoder | None:
    """Load the encoder; None if the file has none."""
    part = _open_vae_encoder(folder, read_config(folder, VAEConfig))
    return _channels_last(part.load(device, dtype)) if part else None


def _open_dit(folder: Path, config: DiTConfig) -> tuple[Part[DiT], str]:
    files = WeightFiles(folder)
    layout = dit_layout(files)
    return Part.open(DiT, config, files, DIT_SOURCES[layout]), layout


def _open_unconditional(folder: Path | None, config: DiTConfig | None) -> Part[DiT] | None:
    return _open_dit(folder, config)[0] if folder and config else None


def _open_text_encoder(folder: Path, config: TextEncoderConfig) -> Part[TextEncoder]:
    files = WeightFiles(folder, UNREAD_OF_TEXT_ENCODER)
    return Part.open(TextEncoder, config, files, same_names)


def _open_vae(folder: Path, config: VAEConfig) -> Part[VAE]:
    files = WeightFiles(folder, UNREAD_OF_VAE)
    return Part.open(VAE, config, files, same_names)


def _open_vae_encoder(folder: Path, config: VAEConfig) -> Part[VAEEncoder] | None:
    """None if the file has no encoder."""
    files = WeightFiles(folder, ignore=("decoder.", "post_quant_conv.", "bn."))
    if ENCODER_KEY not in files:
        return None
    levels, expected = len(config.block_out_channels), len(config.decoder_channels)
    if levels != expected:
        raise CheckpointError(
            f"{folder / 'config.json'}: block_out_channels: {levels} levels, but the decoder has {expected}"
        )
    return Part.open(VAEEncoder, config, files, same_names)


def _channels_last(vae: V) -> V:
    return vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _load_latent_norm(folder: Path, config: VAEConfig, layout: str, device: torch.device | str) -> LatentNorm:
    """Use the file's bn statistics in the diffusers layout, the published constants in the official one."""
    if layout == "diffusers":
        scale, shift = _read_statistics(WeightFiles(folder), config)
    else:
        constants = read_json(LATENT_NORM)
        scale, shift = torch.tensor(constants["scale"]), torch.tensor(constants["shift"])
        if len(scale) != config.token_channels:
            raise CheckpointError(
                f"{folder / 'config.json'}: latent_channels: times patch_size is {config.token_channels}, "
                f"but the official layout has {len(scale)}"
            )
    return LatentNorm(scale.to(device), shift.to(device))


def _read_statistics(files: WeightFiles, config: VAEConfig) -> tuple[Tensor, Tensor]:
    """Standard deviation and mean of each channel of a token."""
    for key in ("bn.running_var", "bn.running_mean"):
        files.check(key, (config.token_channels,), torch.float32)
    variance = files.read("bn.running_var").float()
    if (variance < 0).any():
        raise files.error("bn.running_var", "a variance is negative")
    return torch.sqrt(variance + config.batch_norm_eps), files.read("bn.running_mean").float()


def _load_latent_rgb(folder: Path, config: VAEConfig, device: torch.device | str) -> LatentRGB | None:
    """The checkpoint's map for previews, or None."""
    declared = read_latent_rgb(folder, config)
    if declared is None:
        return None
    return LatentRGB(torch.tensor(declared.weight, device=device), torch.tensor(declared.bias, device=device))


@torch.inference_mode()
def _check_vae(folder: Path, pipeline: Pipeline) -> None:
    """Raises CheckpointError unless noise decodes to finite pixels, which a preview map may be fitted to, and
    these encode to finite latents."""
    vae, norm = pipeline.vae, pipeline.latent_norm
    channels = vae.config.latent_channels
    scale, shift = norm.scale[:channels].view(1, -1, 1, 1), norm.shift[:channels].view(1, -1, 1, 1)
    noise = torch.randn(1, channels, 8, 8, generator=torch.Generator("cpu").manual_seed(0))
    latents = noise.to(scale.device) * scale + shift
    pixels = vae.decode(latents)
    if not pixels.isfinite().all():
        raise CheckpointError(f"{folder}: the weights turn noise into NaN or infinity")
    encoder = pipeline.vae_encoder
    if encoder and not encoder.encode(pixels).isfinite().all():
        raise CheckpointError(f"{folder}: the weights of the encoder turn pixels into NaN or infinity")
