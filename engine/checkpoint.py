"""A checkpoint folder -> the model, in any of the published layouts.

Every problem of the folder is a CheckpointError that names the file and the key.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from engine.errors import CheckpointError
from engine.layouts import DIT_SOURCES, dit_layout, same_names
from engine.models.dit import DiT, DiTConfig
from engine.models.text_encoder import TextEncoder
from engine.models.vae import VAE, VAEConfig
from engine.module_config import build, read_config, read_json
from engine.module_weights import load_weights
from engine.weights import WeightFiles

LATENT_NORM = Path(__file__).parent / "models" / "latent_norm.json"


@dataclass(frozen=True, slots=True)
class LatentNorm:
    """Per-channel affine from the DiT's latents to the VAE's: z * scale + shift, (C,) float32 each."""

    scale: Tensor
    shift: Tensor


@dataclass(frozen=True, slots=True)
class LatentRGB:
    """Linear map from a VAE latent (c,) to the RGB in [-1, 1] it stands for: weight (c, 3), bias (3,)."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The loaded model. `unconditional` may be `conditional` itself (distilled checkpoints).

    `latent_rgb` is None where the checkpoint has no map of its own for previews.
    """

    text_encoder: TextEncoder
    conditional: DiT
    unconditional: DiT
    vae: VAE
    latent_norm: LatentNorm
    latent_rgb: LatentRGB | None = None


def load_pipeline(
    path: Path,
    device: torch.device | str,
    dtype: torch.dtype,
    uncond_device: torch.device | str | None = None,
) -> Pipeline:
    """Load every part of the checkpoint folder `path`. Raises CheckpointError naming file and key."""
    conditional, layout = load_dit(path / "transformer", device, dtype)
    unconditional = conditional
    if (path / "unconditional_transformer").is_dir():
        unconditional, _ = load_dit(path / "unconditional_transformer", uncond_device or device, dtype)
    text_encoder = load_text_encoder(path / "text_encoder", device, dtype)
    vae = load_vae(path / "vae", device, dtype)
    norm = load_latent_norm(path / "vae", layout, device)
    rgb = load_latent_rgb(path / "vae" / "latent_rgb.json", vae.config.latent_channels, device)
    pipeline = Pipeline(text_encoder, conditional, unconditional, vae, norm, rgb)
    _check_widths(path, pipeline)
    return pipeline


def load_dit(folder: Path, device: torch.device | str, dtype: torch.dtype) -> tuple[DiT, str]:
    """One DiT and the layout it came in ("diffusers" or "official")."""
    files = WeightFiles(folder)
    layout = dit_layout(files)
    dit = build(DiT, read_config(folder, DiTConfig), folder / "config.json")
    load_weights(dit, files, DIT_SOURCES[layout], device, dtype)
    return dit, layout


def load_text_encoder(folder: Path, device: torch.device | str, dtype: torch.dtype) -> TextEncoder:
    """The text model; the vision tower and the final norm in the file are left unread."""
    files = WeightFiles(folder, ignore=("visual.", "language_model.norm."))
    file = folder / "config.json"
    encoder = build(TextEncoder, read_json(file), file)
    load_weights(encoder, files, same_names, device, dtype)
    return encoder


def load_vae(folder: Path, device: torch.device | str, dtype: torch.dtype) -> VAE:
    """The decoder; the encoder and the bn statistics in the file are left unread."""
    files = WeightFiles(folder, ignore=("encoder.", "quant_conv.", "bn."))
    vae = build(VAE, read_config(folder, VAEConfig), folder / "config.json")
    load_weights(vae, files, same_names, device, dtype)
    return vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def load_latent_norm(folder: Path, layout: str, device: torch.device | str) -> LatentNorm:
    """bn statistics in the diffusers layout; the published constants in the official one."""
    if layout == "official":
        constants = read_json(LATENT_NORM)
        scale, shift = torch.tensor(constants["scale"]), torch.tensor(constants["shift"])
    else:
        files = WeightFiles(folder)
        variance = files.read("bn.running_var").float()
        scale = torch.sqrt(variance + read_config(folder, VAEConfig).batch_norm_eps)
        shift = files.read("bn.running_mean").float()
    return LatentNorm(scale.to(device), shift.to(device))


def load_latent_rgb(file: Path, channels: int, device: torch.device | str) -> LatentRGB | None:
    """The checkpoint's own map for previews, if it has one."""
    if not file.is_file():
        return None
    declared = read_json(file)
    try:
        rgb = LatentRGB(*(torch.tensor(declared[key], device=device) for key in ("weight", "bias")))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: {error!r}") from error
    if rgb.weight.shape != (channels, 3) or rgb.bias.shape != (3,):
        raise CheckpointError(f"{file}: weight: needs {channels} rows of 3, and bias 3 numbers")
    return rgb


def _check_widths(path: Path, pipeline: Pipeline) -> None:
    """Raises CheckpointError where one part's output does not fit another's input."""
    channels = (4 * pipeline.vae.config.latent_channels,)  # a patch of 2 x 2
    if not channels == pipeline.latent_norm.scale.shape == pipeline.latent_norm.shift.shape:
        raise CheckpointError(
            f"{path / 'vae' / 'config.json'}: latent_channels: the latent norm has not 4 times as many"
        )
    parts = {"transformer": pipeline.conditional, "unconditional_transformer": pipeline.unconditional}
    for part, dit in parts.items():
        needed = {"llm_features_dim": pipeline.text_encoder.features_dim, "in_channels": channels[0]}
        for key, width in needed.items():
            if (stated := getattr(dit.config, key)) != width:
                raise CheckpointError(
                    f"{path / part / 'config.json'}: {key}: {stated}, but the other parts make {width}"
                )
