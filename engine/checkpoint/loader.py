"""Loads the model from a checkpoint folder in any of the published layouts.

Every fault of the folder is a CheckpointError that names the file and the key.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from engine.checkpoint.latents import LatentNorm, LatentRGB, load_latent_norm, load_latent_rgb
from engine.checkpoint.layouts import DIT_SOURCES, dit_layout, same_names
from engine.checkpoint.module_weights import Part
from engine.checkpoint.weight_files import WeightFiles
from engine.config.key_names import UNREAD_OF_TEXT_ENCODER, UNREAD_OF_VAE
from engine.config.part_configs import (
    DiTConfig,
    PartConfigs,
    TextEncoderConfig,
    VAEConfig,
    read_config,
)
from engine.config.part_folders import PartFolders
from engine.config.vae_encoder import ENCODER_KEY
from engine.errors import CheckpointError, OptionError
from engine.models.dit import DiT
from engine.models.text_encoder import TextEncoder
from engine.models.vae import VAE
from engine.models.vae_encoder import VAEEncoder
from engine.precision import PrecisionOptions
from engine.quantized.fp8 import Fp8Linear
from engine.quantized.fp8_product import multiply_in_fp8

M = TypeVar("M", bound=nn.Module)
V = TypeVar("V", VAE, VAEEncoder)
_AS_STORED = PrecisionOptions()


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
    precision: PrecisionOptions = _AS_STORED,
    edits: bool = True,
    offloads: bool = False,
) -> Pipeline:
    """Load all parts of a model; with `offloads`, the text encoder stays in the memory of the host.

    Raises CheckpointError naming file and key, or OptionError. Configs, keys, shapes and dtypes of all parts
    are checked before the first weight is read. Weights are not widened. With `edits`, the VAE's encoder is
    loaded if there is one.
    """
    configs = PartConfigs.read(folders)
    transformer, layout = _open_dit(folders.transformer, configs.transformer)
    separate = _open_unconditional(folders.unconditional, configs.unconditional)
    text_encoder = _open_text_encoder(folders.text_encoder, configs.text_encoder)
    _check_precision(precision, transformer, text_encoder, *([separate] if separate else []))
    vae = _open_vae(folders.vae, configs.vae)
    vae_encoder = _open_vae_encoder(folders.vae, configs.vae) if edits else None
    norm = load_latent_norm(folders.vae, configs.vae, layout, device)
    rgb = load_latent_rgb(folders.vae, configs.vae, device)
    started = time.monotonic()
    conditional = _load(transformer, device, dtype, precision)
    unconditional = _load(separate, uncond_device or device, dtype, precision) if separate else conditional
    encoder = _load(text_encoder, "cpu" if offloads else device, dtype, precision)
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


def _check_precision(options: PrecisionOptions, transformer: Part[DiT], *others: Part[Any]) -> None:
    """Raises OptionError if the weights are of another kind than the options need."""
    kind, files = options.quantize, transformer.files
    if kind and not any(part.can_quantize(kind) for part in (transformer, *others)):
        raise OptionError(
            f"quantize: {kind} is for weights that are not quantised; those of {files.folder} are"
        )
    stored = any(isinstance(layer, Fp8Linear) for layer in transformer.module.layers.modules())
    if options.matmul == "fp8" and not stored and not (kind == "fp8" and transformer.can_quantize(kind)):
        raise OptionError(
            f"matmul: fp8 needs fp8 weights, and those of {files.folder} are not; if they are not quantised, "
            "--quantize fp8 makes them"
        )


def _load(part: Part[M], device: torch.device | str, dtype: torch.dtype, options: PrecisionOptions) -> M:
    module = part.load(device, dtype, options.quantize)
    if options.matmul == "fp8":
        multiply_in_fp8(module)
    return module


def _channels_last(vae: V) -> V:
    return vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


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
