"""Counts what a model of any size takes: its modules are built on `meta` from the headers of its files."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from engine.checkpoint import loader
from engine.checkpoint.module_weights import Part
from engine.config.part_configs import PartConfigs
from engine.config.part_folders import PartFolders
from engine.kernels.packing import Packing
from engine.models.dit import DiT
from engine.models.text_encoder import TextEncoder
from engine.models.vae import VAE
from tests.engine.memory import PeakMemory


class Fused(TorchFunctionMode):
    """Attention returns its output only: on `meta`, torch would make the scores, which no kernel keeps."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


def weights(folders: PartFolders, dtype: torch.dtype) -> int:
    """Bytes of all weights in memory, by the modules that the loader would fill."""
    configs = PartConfigs.read(folders)
    parts: list[Part[Any]] = [
        loader._open_dit(folders.transformer, configs.transformer)[0],
        loader._open_text_encoder(folders.text_encoder, configs.text_encoder),
        loader._open_vae(folders.vae, configs.vae),
    ]
    if separate := loader._open_unconditional(folders.unconditional, configs.unconditional):
        parts.append(separate)
    return sum(
        parameter.numel() * part.kept_dtype(name, dtype).itemsize
        for part in parts
        for name, parameter in part.module.named_parameters()
    )


def peak(run: Callable[[], object]) -> int:
    """The most bytes of tensors that `run` holds at a time, besides those that exist before."""
    with torch.inference_mode(), Fused(), PeakMemory() as counted:
        run()
    return counted.bytes


def step(dit: DiT, prompts: Sequence[int], rows: int, columns: int) -> int:
    """Bytes of the activations of a pass over images of `rows` x `columns` tokens, one for each prompt."""
    config, width = dit.config, dit.config.hidden_size
    images = [rows * columns] * len(prompts)
    with torch.device("meta"), torch.inference_mode():
        latents = torch.empty(sum(images), config.in_channels)
        text = [torch.empty(length, width, dtype=dit.dtype) for length in prompts]
        rotary = torch.cat([dit.rotary(length, rows, columns, "meta") for length in prompts], dim=1)
        modulation = dit.modulate(torch.empty(len(prompts)))
    packing = Packing.build(list(prompts), images, "meta")
    return peak(lambda: dit(latents, text if any(prompts) else [], modulation, rotary, packing))


def encode(encoder: TextEncoder, dit: DiT, tokens: int) -> int:
    """Bytes of the activations of an encode and of the projection of its features."""
    return peak(lambda: dit.project_text(encoder([0] * tokens)))


def decode(vae: VAE, rows: int, columns: int, images: int = 1) -> int:
    """Bytes of the activations of a decode of latents of `rows` x `columns`."""
    z = torch.empty(images, vae.config.latent_channels, rows, columns, device="meta")
    return peak(lambda: vae.decode(z))


def models(folders: PartFolders, dtype: torch.dtype) -> tuple[TextEncoder, DiT, VAE]:
    """The text encoder, the conditional transformer and the VAE on `meta`."""
    configs = PartConfigs.read(folders)
    dit = loader._open_dit(folders.transformer, configs.transformer)[0]
    encoder = loader._open_text_encoder(folders.text_encoder, configs.text_encoder)
    return _kept(encoder, dtype), _kept(dit, dtype), _kept(loader._open_vae(folders.vae, configs.vae), dtype)


def _kept(part: Part[Any], dtype: torch.dtype) -> Any:
    """The module of a part with the dtypes that its weights have in memory."""
    for name, parameter in list(part.module.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        kept = parameter.data.to(part.kept_dtype(name, dtype))
        setattr(part.module.get_submodule(owner), leaf, nn.Parameter(kept, requires_grad=False))
    return part.module.eval()
