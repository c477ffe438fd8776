"""Writes random adapters in each format."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.config.part_configs import DiTConfig

Tensors = dict[str, Tensor]
SEPARATE = ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0")
FUSED = ("attention.qkv", "attention.o")
COMMON = ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "adaln_modulation")


def shapes(config: DiTConfig) -> dict[str, tuple[int, int]]:
    """Rows and columns of each module that an adapter may change."""
    width, hidden = config.hidden_size, config.intermediate_size
    return {
        **dict.fromkeys((*SEPARATE, "attention.o"), (width, width)),
        "attention.qkv": (3 * width, width),
        "feed_forward.w1": (hidden, width),
        "feed_forward.w2": (width, hidden),
        "feed_forward.w3": (hidden, width),
        "adaln_modulation": (4 * width, config.adaln_dim),
    }


def factors(
    config: DiTConfig, modules: Iterable[str], rank: int, seed: int, prefix: str, names: tuple[str, str]
) -> Tensors:
    """The factors of these modules in every layer, large enough to change an image."""
    generator = torch.Generator().manual_seed(seed)
    tensors: Tensors = {}
    for layer in range(config.num_layers):
        for module in modules:
            rows, columns = shapes(config)[module]
            key = f"{prefix}layers.{layer}.{module}"
            down = torch.randn(rank, columns, generator=generator) / columns**0.5
            up = torch.randn(rows, rank, generator=generator) / rank**0.5
            tensors |= {f"{key}.{names[0]}.weight": down, f"{key}.{names[1]}.weight": up}
    return tensors


def peft(config: DiTConfig, rank: int = 4, seed: int = 0, prefix: str = "transformer.") -> Tensors:
    return factors(config, (*SEPARATE, *COMMON), rank, seed, prefix, ("lora_A", "lora_B"))


def comfyui(config: DiTConfig, rank: int = 4, seed: int = 0, prefix: str = "diffusion_model.") -> Tensors:
    return factors(config, (*FUSED, *COMMON), rank, seed, prefix, ("lora_A", "lora_B"))


def kohya(
    config: DiTConfig, rank: int = 4, seed: int = 0, prefix: str = "conditional_transformer."
) -> Tensors:
    """With alpha = 2.5 in the first module's key order, and an alpha for every other module only."""
    tensors = factors(config, (*FUSED, *COMMON), rank, seed, prefix, ("lora_down", "lora_up"))
    downs = [key for key in tensors if key.endswith(".lora_down.weight")]
    alphas = {key.replace("lora_down.weight", "alpha"): torch.tensor(2.5) for key in downs[::2]}
    return tensors | alphas


FORMATS: dict[str, Callable[..., Tensors]] = {"peft": peft, "comfyui": comfyui, "kohya": kohya}


def write(file: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    save_file(tensors, file, metadata=metadata)
    return file
