"""Writes random checkpoints of any size in the official layouts without holding them in memory."""

import json
import math
import os
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from engine.checkpoint.layouts import DIT_SOURCES, expected_tensors, same_names
from engine.config.part_configs import DiTConfig, TextConfig, TextEncoderConfig, VAEConfig
from engine.models.dit import DiT
from engine.models.text_encoder import TextEncoder
from engine.models.vae import VAE
from engine.models.vae_encoder import VAEEncoder

Layout = Literal["bf16", "fp8", "nf4"]
PARTS = ("transformer", "unconditional_transformer", "text_encoder", "vae")
SMALL = 1 << 10  # bytes of a tensor
POOL = 1 << 20  # number of random values, which each tensor repeats
DTYPES = {
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.uint8: "U8",
}
NF4_CODE = torch.special.ndtri(torch.linspace(0.03, 0.97, 16)) / torch.special.ndtri(torch.tensor(0.97))


@dataclass(frozen=True)
class Stored:
    """One tensor of a file: `pool` (any number of values) repeated to fill `shape`."""

    key: str
    shape: tuple[int, ...]
    pool: Tensor

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.pool.itemsize


def write_checkpoint(
    folder: Path,
    layout: Layout,
    dit: DiTConfig,
    text: dict[str, Any],
    vae: VAEConfig,
    full: Collection[str] = PARTS,
) -> None:
    """Write both transformers, the text encoder and the VAE with its encoder, with random weights.

    The files of parts that are not in `full` have their sizes and headers, but no weights, and take no space
    on the disk.
    """
    encoder = TextEncoderConfig(TextConfig(**text))
    transformer = ([DiT], dit, asdict(dit), layout)
    contents: dict[str, tuple[list[Any], object, dict[str, Any], Layout]] = {
        "transformer": transformer,
        "unconditional_transformer": transformer,
        "text_encoder": ([TextEncoder], encoder, {"text_config": text}, layout),
        "vae": ([VAE, VAEEncoder], vae, asdict(vae), "bf16"),
    }
    for part, content in contents.items():
        _write_part(folder / part, *content, is_sparse=part not in full)


def _write_part(
    folder: Path, kinds: list[Any], config: object, declared: dict[str, Any], layout: Layout, is_sparse: bool
) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(declared), "utf-8")
    with torch.device("meta"):
        modules = [kind(config) for kind in kinds]
    tensors = [stored for module in modules for stored in _tensors(module, layout)]
    _write_file(folder / "model.safetensors", tensors, is_sparse)


def _tensors(module: nn.Module, layout: Layout) -> Iterator[Stored]:
    sources = DIT_SOURCES["official"] if isinstance(module, DiT) else same_names
    linear = {
        key
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
        for key in sources(f"{name}.weight")
    }
    for key, shape in expected_tensors(module, sources):
        if layout == "fp8" and key in linear:
            yield from _fp8(key, shape)
        elif layout == "nf4" and key in linear:
            yield from _nf4(key, shape)
        else:
            yield Stored(
                key, shape, _normal(1 / math.sqrt(math.prod(shape[1:]))) if len(shape) > 1 else _ones()
            )


def _fp8(key: str, shape: tuple[int, ...]) -> Iterator[Stored]:
    yield Stored(key, shape, _fp8_values())
    yield Stored(f"{key}_scale", shape[:1], torch.tensor([1 / (64 * math.sqrt(shape[1]))]))


def _nf4(key: str, shape: tuple[int, ...]) -> Iterator[Stored]:
    numel = math.prod(shape)
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": shape}
    stated = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    yield Stored(key, (numel // 2, 1), _bytes())
    yield Stored(f"{key}.absmax", (numel // 64,), torch.tensor([2 / math.sqrt(shape[1])]))
    yield Stored(f"{key}.quant_map", (16,), NF4_CODE)
    yield Stored(f"{key}.quant_state.bitsandbytes__nf4", tuple(stated.shape), stated)


@lru_cache(maxsize=4)
def _normal(std: float) -> Tensor:
    return (std * torch.randn(POOL, generator=torch.Generator().manual_seed(0))).bfloat16()


@lru_cache(maxsize=1)
def _fp8_values() -> Tensor:
    return _normal(64.0).float().to(torch.float8_e4m3fn)


@lru_cache(maxsize=1)
def _ones() -> Tensor:
    return torch.ones(POOL, dtype=torch.bfloat16)


@lru_cache(maxsize=4)
def _bytes() -> Tensor:
    return torch.randint(0, 256, (POOL,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _write_file(file: Path, tensors: list[Stored], is_sparse: bool) -> None:
    """Write the safetensors format: length of the header, header, data. A sparse file has small tensors
    only."""
    header, end = {}, 0
    for stored in tensors:
        start, end = end, end + stored.nbytes
        dtype = DTYPES[stored.pool.dtype]
        header[stored.key] = {"dtype": dtype, "shape": stored.shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with file.open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        for stored in tensors:
            if is_sparse and stored.nbytes > SMALL:
                stream.truncate(stream.seek(stored.nbytes, os.SEEK_CUR))
                continue
            pool = stored.pool.view(torch.uint8)[: stored.nbytes].numpy().tobytes()
            pool *= max(1, min(POOL, stored.nbytes) // len(pool))
            for left in range(stored.nbytes, 0, -len(pool)):
                stream.write(pool[: min(left, len(pool))])
