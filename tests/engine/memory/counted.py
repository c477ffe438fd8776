"""Counts what a model of any size takes: its modules are built on `meta` from the headers of its files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

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
from engine.models.vae_encoder import VAEEncoder
from engine.precision import PrecisionOptions, Quantization
from engine.quantized.fp8 import Fp8Linear
from engine.quantized.fp8_product import multiply_in_fp8
from engine.quantized.kept import quantized_layers
from engine.quantized.layer import QuantizedLinear, replace
from engine.quantized.nf4 import NF4Linear
from engine.quantized.quantize import can_quantize
from tests.engine.memory import PeakMemory


class Fused(TorchFunctionMode):
    """Attention returns its output only: on `meta`, torch would make the scores, which no kernel keeps."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Models:
    """The parts of a model on `meta`, as they are kept in memory."""

    encoder: TextEncoder
    dit: DiT
    unconditional: DiT
    vae: VAE
    vae_encoder: VAEEncoder

    @property
    def weight_bytes(self) -> int:
        parts = (getattr(self, field.name) for field in fields(self))
        return sum(parameter.nbytes for part in parts for parameter in part.parameters())


def models(folders: PartFolders, dtype: torch.dtype, precision: PrecisionOptions) -> Models:
    """Built as the loader does."""
    configs = PartConfigs.read(folders)
    opened: list[Part[Any]] = [
        loader._open_text_encoder(folders.text_encoder, configs.text_encoder),
        loader._open_dit(folders.transformer, configs.transformer)[0],
        loader._open_dit(folders.transformer, configs.transformer)[0],
    ]
    encoder, dit, unconditional = (_in_precision(_kept(part, dtype), dtype, precision) for part in opened)
    vae, vae_encoder = (
        _kept(open_part(folders.vae, configs.vae), dtype)
        for open_part in (loader._open_vae, loader._open_vae_encoder)
    )
    return Models(encoder, dit, unconditional, vae, vae_encoder)


def _in_precision(part: nn.Module, dtype: torch.dtype, precision: PrecisionOptions) -> nn.Module:
    if kind := precision.quantize:
        for name, layer in list(part.named_modules()):
            if can_quantize(layer, kind):
                replace(part, name, _quantized(cast(nn.Linear, layer), kind))
    if precision.matmul == "fp8":
        multiply_in_fp8(part)
    if precision.weights == "widened":
        for each in quantized_layers(part):
            each.widen(dtype)
    return part


def _quantized(layer: nn.Linear, kind: Quantization) -> QuantizedLinear:
    """As `engine.quantized.quantize`, without the values."""
    layer_class = Fp8Linear if kind == "fp8" else NF4Linear
    with torch.device("meta"):
        made = layer_class(layer.in_features, layer.out_features, bias=False)
    made.bias = layer.bias
    return made


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


def encode_image(encoder: VAEEncoder, rows: int, columns: int, images: int = 1) -> tuple[int, int]:
    """Bytes of the activations of an encode of images of so many pixels, and of those between its parts."""
    pixels = torch.empty(images, 3, rows, columns, device="meta")
    with torch.inference_mode(), PeakMemory() as counted:
        paused = max(counted.live for _ in encoder.encode_parts(pixels))
    return counted.bytes + pixels.nbytes, paused + pixels.nbytes


def _kept(part: Part[Any], dtype: torch.dtype) -> Any:
    """The module of a part with the dtypes that its weights have in memory."""
    for name, parameter in list(part.module.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        kept = parameter.data.to(part.kept_dtype(name, dtype))
        setattr(part.module.get_submodule(owner), leaf, nn.Parameter(kept, requires_grad=False))
    return part.module.eval()
