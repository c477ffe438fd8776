"""Constants of the latents: their normalisation, and the map to the colours of previews."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from engine.checkpoint.weight_files import WeightFiles
from engine.config.files import read_json
from engine.config.part_configs import VAEConfig, read_latent_rgb
from engine.errors import CheckpointError

LATENT_NORM = Path(__file__).parent / "latent_norm.json"


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


def load_latent_norm(folder: Path, config: VAEConfig, layout: str, device: torch.device | str) -> LatentNorm:
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


def load_latent_rgb(folder: Path, config: VAEConfig, device: torch.device | str) -> LatentRGB | None:
    """The checkpoint's map for previews, or None."""
    declared = read_latent_rgb(folder, config)
    if declared is None:
        return None
    return LatentRGB(torch.tensor(declared.weight, device=device), torch.tensor(declared.bias, device=device))
