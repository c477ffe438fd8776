"""Broken checkpoints raise a CheckpointError that names the file and the key."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.checkpoint.loader import load_pipeline
from engine.checkpoint.weight_files import WeightFiles
from engine.client.preflight import open_tokenizer
from engine.config.model_config import ModelConfig
from engine.config.options import EngineOptions
from engine.config.part_folders import PartFolders
from engine.errors import CheckpointError
from engine.worker.warmup import measure
from tests.engine.checkpoints import Checkpoint, edit_json, edit_tensors, write_tiny
from tests.engine.conftest import Checkpoints, load_runner

DIT = "transformer/diffusion_pytorch_model.safetensors"
INDEX = f"{DIT}.index.json"
TEXT = "text_encoder/model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
W1 = "layers.1.feed_forward.w1.weight"
COMFY = "layers.1.feed_forward.w1.comfy_quant"
W3 = "layers.1.feed_forward.w3.weight"
NORM = "layers.0.attention_norm1.weight"
QUERY = "layers.0.attention.to_q.weight"
STATE = "quant_state.bitsandbytes__nf4"


@dataclass(frozen=True)
class Fault:
    """A change to the folder of a valid checkpoint, and words that the error must contain."""

    layout: str
    do: Callable[[Path], object]
    words: tuple[str, ...]


def tensors(file: str, edit: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], object]:
    return lambda folder: edit_tensors(folder / file, edit)


def config(part: str, **values: Any) -> Callable[[Path], object]:
    return lambda folder: edit_json(folder / part / "config.json", lambda declared: declared.update(values))


def text_config(**values: Any) -> Callable[[Path], object]:
    file = Path("text_encoder", "config.json")
    return lambda folder: edit_json(folder / file, lambda declared: declared["text_config"].update(values))


def write(file: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_bytes(content)


def remove(name: str) -> Callable[[Path], object]:
    def do(folder: Path) -> None:
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()

    return do


def truncate(folder: Path) -> None:
    content = (folder / DIT).read_bytes()
    (folder / DIT).write_bytes(content[: len(content) // 2])


def lose_from_shard(folder: Path) -> None:
    shard = json.loads((folder / INDEX).read_text("utf-8"))["weight_map"][W1]
    edit_tensors(folder / "transformer" / shard, lambda held: held.pop(W1))


def drop_from_index(folder: Path) -> None:
    edit_json(folder / INDEX, lambda index: index["weight_map"].pop(W1))


def declare(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Change the JSON of W1's quantisation state."""

    def edit(held: dict[str, Tensor]) -> None:
        declared = json.loads(bytes(held[f"{W1}.{STATE}"].tolist()))
        change(declared)
        held[f"{W1}.{STATE}"] = torch.tensor(list(json.dumps(declared).encode()), dtype=torch.uint8)

    return tensors(DIT, edit)


def unquantise(held: dict[str, Tensor]) -> None:
    for key in [key for key in held if key.startswith(W1)]:
        del held[key]
    held[W1] = torch.zeros(192, 128)


def fill(file: str, key: str, value: float, at: slice = slice(None)) -> Callable[[Path], object]:
    return tensors(file, lambda held: held[key].view(-1)[at].fill_(value))


def fill_byte(key: str, byte: int) -> Callable[[Path], object]:
    return tensors(DIT, lambda held: held[key].view(torch.uint8).view(-1)[-1:].fill_(byte))


def header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Change the JSON header of the transformer's file without moving the data."""

    def edit(folder: Path) -> None:
        content = (folder / DIT).read_bytes()
        size = int.from_bytes(content[:8], "little")
        declared = json.loads(content[8 : 8 + size])
        change(declared)
        head = json.dumps(declared).encode()
        (folder / DIT).write_bytes(len(head).to_bytes(8, "little") + head + content[8 + size :])

    return edit


def header_length(length: int) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        (folder / DIT).write_bytes(length.to_bytes(8, "little") + (folder / DIT).read_bytes()[8:])

    return edit


def relist(name: str) -> Callable[[Path], object]:
    """List another file for W1 in the index."""
    return lambda folder: edit_json(folder / INDEX, lambda index: index["weight_map"].update({W1: name}))


def hold_twice(folder: Path) -> None:
    names = json.loads((folder / INDEX).read_text("utf-8"))["weight_map"]
    other = next(name for name in names.values() if name != names[W1])
    edit_tensors(folder / "transformer" / other, lambda held: held.update({W1: torch.zeros(192, 128)}))


def replace(name: str, by: Callable[[Path], object]) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        if (folder / name).exists():
            remove(name)(folder)
        by(folder / name)

    return edit


def preview(bias: float, rows: int = 32) -> Callable[[Path], object]:
    declared = {"weight": [[0.1, 0.2, 0.3]] * rows, "bias": [bias] * 3}
    return write("vae/latent_rgb.json", json.dumps(declared).encode())


def dangle(file: Path) -> None:
    file.symlink_to("absent")


ADAPTER = "transformer/pytorch_lora_weights.safetensors"


def adapter(key: str) -> Callable[[Path], object]:
    return lambda folder: save_file({key: torch.ones(4, 128)}, folder / ADAPTER)


def both(*edits: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: [edit(folder) for edit in edits]


def prefix(file: str, by: str) -> Callable[[Path], object]:
    """Put `by` in front of every key."""

    def edit(held: dict[str, Tensor]) -> None:
        held.update({by + key: held.pop(key) for key in list(held)})

    return tensors(file, edit)


def describe(declared: bytes) -> Callable[[Path], object]:
    """Describe a layer as files for ComfyUI do."""
    return tensors(DIT, lambda held: held.update({COMFY: torch.tensor(list(declared), dtype=torch.uint8)}))


FAULTS = {
    # files
    "no weights": Fault("diffusers", remove(DIT), ("transformer", "*.safetensors")),
    "no transformer": Fault("diffusers", remove("transformer"), ("transformer/config.json",)),
    "no text encoder": Fault("diffusers", remove("text_encoder"), ("text_encoder/config.json",)),
    "no vae": Fault("diffusers", remove("vae"), ("vae/config.json",)),
    "no config": Fault("diffusers", remove("transformer/config.json"), ("transformer/config.json",)),
    "no text config": Fault("diffusers", remove("text_encoder/config.json"), ("text_encoder/config.json",)),
    "config is not JSON": Fault("diffusers", write("vae/config.json", b'{"a'), ("vae/config.json",)),
    "config is not UTF-8": Fault("diffusers", write("vae/config.json", b"\xff"), ("vae/config.json",)),
    "config is a list": Fault("diffusers", write("vae/config.json", b"[]"), ("vae/config.json", "object")),
    "empty weights": Fault("diffusers", write(DIT, b""), (DIT,)),
    "a pointer for weights": Fault("diffusers", write(DIT, b"version https://git-lfs"), (DIT,)),
    "half the weights": Fault("diffusers", truncate, (DIT,)),
    "a second file": Fault(
        "diffusers",
        lambda folder: shutil.copy(folder / DIT, folder / "transformer" / "other.safetensors"),
        ("transformer", "other.safetensors", "no index"),
    ),
    "an adapter beside the weights": Fault(
        "diffusers",
        adapter("transformer.layers.0.attention.to_q.lora_A.weight"),
        (ADAPTER, "LoRA adapter", "merge"),
    ),
    "an adapter in kohya's names": Fault(
        "diffusers",
        adapter("lora_unet_layers_0_attention_to_q.lora_down.weight"),
        (ADAPTER, "LoRA adapter", "merge"),
    ),
    "an adapter instead of the weights": Fault(
        "diffusers",
        both(remove(DIT), adapter("layers.0.attention.to_q.lora_A.weight")),
        (ADAPTER, "LoRA adapter", "merge"),
    ),
    "a folder for a config": Fault(
        "diffusers", replace("vae/config.json", Path.mkdir), ("vae/config.json", "not a regular file")
    ),
    "a folder for weights": Fault("diffusers", replace(DIT, Path.mkdir), (DIT, "not a regular file")),
    "a dangling link for weights": Fault("diffusers", replace(DIT, dangle), (DIT, "No such file")),
    "a link to itself for weights": Fault(
        "diffusers", replace(DIT, lambda file: file.symlink_to(file)), (DIT, "symbolic links")
    ),
    "a file for the unconditional one": Fault(
        "diffusers", replace("unconditional_transformer", Path.touch), ("unconditional_transformer", "folder")
    ),
    "a dangling link for the unconditional one": Fault(
        "diffusers", replace("unconditional_transformer", dangle), ("unconditional_transformer", "folder")
    ),
    "a header that is too long": Fault("diffusers", header_length(1 << 62), (DIT,)),
    "a header that is too short": Fault("diffusers", header_length(20), (DIT,)),
    "a header of nothing": Fault("diffusers", header_length(0), (DIT,)),
    "offsets beyond the file": Fault(
        "diffusers", header(lambda head: head[NORM].update(data_offsets=[0, 1 << 40])), (DIT,)
    ),
    "offsets that overlap": Fault(
        "diffusers", header(lambda head: head[NORM].update(data_offsets=head[QUERY]["data_offsets"])), (DIT,)
    ),
    "offsets that fall": Fault(
        "diffusers", header(lambda head: head[NORM]["data_offsets"].reverse()), (DIT,)
    ),
    "a shape its data does not fill": Fault(
        "diffusers", header(lambda head: head[NORM].update(shape=[1 << 40])), (DIT,)
    ),
    "an unknown dtype": Fault("diffusers", header(lambda head: head[NORM].update(dtype="F31")), (DIT,)),
    # shards
    "a shard outside the folder": Fault("sharded", relist("../x.safetensors"), (INDEX, W1, "../x")),
    "a shard anywhere": Fault("sharded", relist("/etc/x.safetensors"), (INDEX, W1, "/etc/x")),
    "a shard of another kind": Fault("sharded", relist("config.json"), (INDEX, W1, "config.json")),
    "a shard without a name": Fault("sharded", relist(""), (INDEX, W1)),
    "in two shards": Fault("sharded", hold_twice, (INDEX, W1, "is in")),
    "an index of nothing": Fault("sharded", write(INDEX, b'{"weight_map": {}}'), (INDEX, "weight_map")),
    "an index nested too deep": Fault("sharded", write(INDEX, b"[" * 100_000), (INDEX,)),
    "an index that is a list": Fault("sharded", write(INDEX, b"[]"), (INDEX,)),
    "no shard": Fault(
        "sharded",
        remove("transformer/diffusion_pytorch_model-00002-of-00006.safetensors"),
        ("00002-of-00006.safetensors",),
    ),
    "not in its shard": Fault("sharded", lose_from_shard, (".safetensors", W1, "missing")),
    "not in the index": Fault("sharded", drop_from_index, (INDEX, W1, "nowhere")),
    "two indexes": Fault("sharded", write("transformer/a.safetensors.index.json", b"{}"), ("two indexes",)),
    "index is not JSON": Fault("sharded", write(INDEX, b"{"), (INDEX,)),
    "index without a map": Fault("sharded", write(INDEX, b"{}"), (INDEX, "weight_map")),
    "index with a list": Fault("sharded", write(INDEX, b'{"weight_map": [1]}'), (INDEX, "weight_map")),
    "index with numbers": Fault("sharded", write(INDEX, b'{"weight_map": {"a": 1}}'), (INDEX, "weight_map")),
    # tensors
    "missing": Fault("diffusers", tensors(DIT, lambda held: held.pop(W1)), (DIT, W1, "missing")),
    "missing in the unconditional one": Fault(
        "diffusers",
        tensors(f"unconditional_{DIT}", lambda held: held.pop(W1)),
        (f"unconditional_{DIT}", W1, "missing"),
    ),
    "missing in the text encoder": Fault(
        "diffusers",
        tensors(TEXT, lambda held: held.pop("language_model.layers.3.input_layernorm.weight")),
        (TEXT, "language_model.layers.3.input_layernorm.weight", "missing"),
    ),
    "missing statistics": Fault(
        "diffusers",
        tensors(VAE, lambda held: held.pop("bn.running_var")),
        (VAE, "bn.running_var", "missing"),
    ),
    "unexpected": Fault(
        "diffusers",
        tensors(DIT, lambda held: held.update({"layers.9.bias": torch.ones(1)})),
        (DIT, "layers.9.bias", "unexpected"),
    ),
    "unexpected in the vae": Fault(
        "diffusers",
        tensors(VAE, lambda held: held.update({"decoder.extra": torch.ones(1)})),
        (VAE, "decoder.extra", "unexpected"),
    ),
    "the text model's keys in another class": Fault(
        "diffusers",
        prefix(TEXT, "encoder."),
        (TEXT, "language_model.embed_tokens.weight: missing", "prefix 'encoder.'", "from every key"),
    ),
    "the transformer's keys with a prefix": Fault(
        "official",
        prefix(DIT, "net."),
        (DIT, "layers.0.attention.qkv.weight", "prefix 'net.'"),
    ),
    "misshapen": Fault(
        "diffusers",
        tensors(DIT, lambda held: held.update({W1: torch.ones(192, 64)})),
        (DIT, W1, "(192, 64)", "(192, 128)"),
    ),
    "misshapen vector": Fault(
        "diffusers",
        tensors(DIT, lambda held: held.update({NORM: torch.ones(129)})),
        (DIT, NORM, "(129,)", "(128,)"),
    ),
    "misshapen scalar": Fault(
        "diffusers",
        tensors(DIT, lambda held: held.update({NORM: torch.tensor(1.0)})),
        (DIT, NORM, "()", "(128,)"),
    ),
    "whole numbers": Fault(
        "diffusers",
        tensors(DIT, lambda held: held.update({NORM: torch.ones(128, dtype=torch.int64)})),
        (DIT, NORM, "I64"),
    ),
    "misshapen statistics": Fault(
        "diffusers",
        tensors(VAE, lambda held: held.update({"bn.running_mean": torch.ones(64)})),
        (VAE, "bn.running_mean", "(64,)", "(128,)"),
    ),
    "NaN": Fault("diffusers", fill(DIT, W1, math.nan, slice(-1, None)), (DIT, W1, "NaN")),
    "infinity": Fault("diffusers", fill(DIT, NORM, math.inf, slice(0, 1)), (DIT, NORM, "infinity")),
    "minus infinity in the text encoder": Fault(
        "diffusers",
        fill(TEXT, "language_model.embed_tokens.weight", -math.inf, slice(300, 301)),
        (TEXT, "language_model.embed_tokens.weight", "infinity"),
    ),
    "NaN in the unconditional one": Fault(
        "diffusers",
        fill(f"unconditional_{DIT}", "final_layer.linear.bias", math.nan),
        (f"unconditional_{DIT}", "final_layer.linear.bias", "NaN"),
    ),
    "NaN in the vae": Fault(
        "diffusers",
        fill(VAE, "decoder.conv_out.bias", math.nan, slice(1)),
        (VAE, "decoder.conv_out.bias", "NaN"),
    ),
    "wider than float32": Fault(
        "diffusers",
        tensors(DIT, lambda held: held.update({NORM: torch.full((128,), 1e300, dtype=torch.float64)})),
        (DIT, NORM, "infinity"),
    ),
    "negative variance": Fault(
        "diffusers", fill(VAE, "bn.running_var", -1.0, slice(1)), (VAE, "bn.running_var", "negative")
    ),
    "NaN statistics": Fault(
        "diffusers", fill(VAE, "bn.running_mean", math.nan, slice(1)), (VAE, "bn.running_mean", "NaN")
    ),
    "statistics of whole numbers": Fault(
        "diffusers",
        tensors(VAE, lambda held: held.update({"bn.running_var": torch.ones(128, dtype=torch.int64)})),
        (VAE, "bn.running_var", "I64"),
    ),
    "a tensor of nothing": Fault(
        "diffusers",
        tensors(DIT, lambda held: held.update({NORM: torch.ones(0)})),
        (DIT, NORM, "(0,)", "(128,)"),
    ),
    "weights that overflow in the vae": Fault(
        "diffusers", fill(VAE, "decoder.conv_out.weight", 3e38), ("/vae: ", "NaN or infinity")
    ),
    "a key of the vae's encoder": Fault(
        "diffusers",
        tensors(VAE, lambda held: held.pop("encoder.conv_out.bias")),
        (VAE, "encoder.conv_out.bias", "missing"),
    ),
    "weights that overflow in the vae's encoder": Fault(
        "diffusers", fill(VAE, "encoder.conv_out.weight", 3e38), ("/vae: ", "encoder", "NaN or infinity")
    ),
    "unknown layout": Fault(
        "diffusers",
        tensors(DIT, lambda held: held.update(query=held.pop(QUERY))),
        (DIT, QUERY, "layers.0.attention.qkv.weight: missing"),
    ),
    # configs
    "too few layers": Fault(
        "diffusers",
        config("transformer", num_layers=1),
        (DIT, "layers.1.adaln_modulation.bias", "unexpected"),
    ),
    "too many layers": Fault("diffusers", config("transformer", num_layers=3), (DIT, "layers.2.", "missing")),
    "a word for a number": Fault(
        "diffusers", config("transformer", num_layers="two"), ("transformer/config.json", "num_layers")
    ),
    "a fraction for a number": Fault(
        "diffusers", config("vae", layers_per_block=1.5), ("vae/config.json", "layers_per_block")
    ),
    "no width": Fault(
        "diffusers",
        config("transformer", attention_head_dim=0),
        ("transformer/config.json", "attention_head_dim"),
    ),
    "two axes": Fault(
        "diffusers", config("transformer", mrope_section=[6, 5]), ("transformer/config.json", "mrope_section")
    ),
    "axes past the head": Fault(
        "diffusers",
        config("transformer", mrope_section=[6, 5, 6]),
        ("transformer/config.json", "mrope_section"),
    ),
    "an odd head": Fault(
        "diffusers",
        config("transformer", attention_head_dim=31),
        ("transformer/config.json", "attention_head_dim"),
    ),
    "an empty list": Fault(
        "diffusers", config("vae", block_out_channels=[]), ("vae/config.json", "block_out_channels")
    ),
    "groups that do not divide": Fault(
        "diffusers", config("vae", norm_num_groups=7), ("vae/config.json", "norm_num_groups")
    ),
    "no groups": Fault("diffusers", config("vae", norm_num_groups=0), ("vae/config.json", "norm_num_groups")),
    "other text features": Fault(
        "diffusers",
        lambda folder: (
            config("transformer", llm_features_dim=64)(folder),
            tensors(DIT, lambda held: held.update(narrow_text(held)))(folder),
        ),
        ("transformer/config.json", "llm_features_dim", "832"),
    ),
    "other latents": Fault(
        "official",
        lambda folder: (
            config("vae", latent_channels=16)(folder),
            tensors(VAE, lambda held: held.update(narrow_latents(held)))(folder),
        ),
        ("vae/config.json", "latent_channels"),
    ),
    "a huge width": Fault(
        "diffusers", config("transformer", intermediate_size=1 << 20), (DIT, "feed_forward", "1048576")
    ),
    "a width beyond all": Fault(
        "diffusers",
        config("transformer", intermediate_size=1 << 40),
        ("transformer/config.json", "intermediate_size"),
    ),
    "a width of two factors beyond all": Fault(
        "diffusers",
        config("transformer", num_attention_heads=1024, attention_head_dim=1 << 20),
        ("transformer/config.json", "attention_head_dim", "num_attention_heads"),
    ),
    "layers without end": Fault(
        "diffusers", config("transformer", num_layers=10**9), ("transformer/config.json", "num_layers")
    ),
    "a truth for a number": Fault(
        "diffusers", config("transformer", num_layers=True), ("transformer/config.json", "num_layers")
    ),
    "axes that do not add up": Fault(
        "diffusers",
        config("transformer", mrope_section=[7, 5, 5]),
        ("transformer/config.json", "mrope_section"),
    ),
    "an infinite angle": Fault(
        "diffusers", config("transformer", rope_theta=math.inf), ("transformer/config.json", "rope_theta")
    ),
    "NaN for a number": Fault(
        "diffusers", config("vae", batch_norm_eps=math.nan), ("vae/config.json", "batch_norm_eps")
    ),
    "another patch": Fault("diffusers", config("vae", patch_size=[4, 4]), ("vae/config.json", "patch_size")),
    "other colours": Fault("diffusers", config("vae", out_channels=4), ("vae/config.json", "out_channels")),
    "a config nested too deep": Fault("diffusers", write("vae/config.json", b"[" * 100_000), ("vae/config",)),
    "a number of 5000 digits": Fault(
        "diffusers",
        write("vae/config.json", b'{"a": ' + b"9" * 5000 + b"}"),
        ("vae/config.json", "range"),
    ),
    "a preview of NaN": Fault("diffusers", preview(math.nan), ("vae/latent_rgb.json", "bias.0")),
    "a preview of huge numbers": Fault("diffusers", preview(10**400), ("vae/latent_rgb.json", "bias.0")),
    "a preview of other latents": Fault(
        "diffusers", preview(0.5, rows=31), ("vae/latent_rgb.json", "weight")
    ),
    "a preview that is a link": Fault(
        "diffusers", replace("vae/latent_rgb.json", dangle), ("vae/latent_rgb.json", "No such file")
    ),
    # text encoder
    "heads that do not divide": Fault(
        "diffusers",
        text_config(num_key_value_heads=3),
        ("text_encoder/config.json", "num_key_value_heads", "num_attention_heads"),
    ),
    "an odd text head": Fault(
        "diffusers", text_config(head_dim=15), ("text_encoder/config.json", "head_dim")
    ),
    "a word for an angle": Fault(
        "diffusers",
        text_config(rope_parameters={"rope_theta": "a"}),
        ("text_encoder/config.json", "rope_parameters.rope_theta"),
    ),
    "35 layers": Fault(
        "diffusers",
        text_config(num_hidden_layers=35),
        ("text_encoder/config.json", "tap_layers: 35", "num_hidden_layers, 35"),
    ),
    "no text model": Fault(
        "diffusers",
        lambda folder: edit_json(
            folder / "text_encoder/config.json", lambda declared: declared.pop("text_config")
        ),
        ("text_encoder/config.json", "text_config"),
    ),
    "taps that fall": Fault(
        "diffusers", config("text_encoder", tap_layers=[3, 0]), ("text_encoder/config.json", "tap_layers")
    ),
    "no taps": Fault(
        "diffusers", config("text_encoder", tap_layers=[]), ("text_encoder/config.json", "tap_layers")
    ),
    "a tap that is a word": Fault(
        "diffusers", config("text_encoder", tap_layers=["0"]), ("text_encoder/config.json", "tap_layers")
    ),
    "a word for a text size": Fault(
        "diffusers", text_config(head_dim="a"), ("text_encoder/config.json", "head_dim")
    ),
    "unknown text rope": Fault(
        "diffusers",
        text_config(rope_parameters={"rope_type": "yarn"}),
        ("text_encoder/config.json", "rope_type", "yarn"),
    ),
    "other text size": Fault("diffusers", text_config(head_dim=32), (TEXT, "self_attn", "expected")),
    # fp8
    "fp8 without scale": Fault(
        "official-fp8",
        tensors(DIT, lambda held: held.pop(f"{W1}_scale")),
        (DIT, W3, "quantised differently", W1),
    ),
    "fp8 without any scale": Fault(
        "official-fp8",
        tensors(DIT, lambda held: held.pop("input_proj.weight_scale")),
        (DIT, "input_proj.weight", "F8_E4M3"),
    ),
    "a scale without fp8": Fault(
        "official-fp8",
        tensors(DIT, lambda held: held.update({W1: held[W1].float()})),
        (DIT, W1, "F32"),
    ),
    "misshapen scale": Fault(
        "official-fp8",
        tensors(DIT, lambda held: held.update({f"{W1}_scale": torch.ones(2)})),
        (DIT, f"{W1}_scale", "(2,)"),
    ),
    "a scale of whole numbers": Fault(
        "official-fp8",
        tensors(DIT, lambda held: held.update({f"{W1}_scale": torch.ones(192, dtype=torch.int32)})),
        (DIT, f"{W1}_scale", "I32"),
    ),
    "another format of ComfyUI": Fault(
        "official-fp8",
        describe(b'{"format": "nvfp4"}'),
        (DIT, COMFY, "'nvfp4'", "expected 'float8_e4m3fn'"),
    ),
    "no format of ComfyUI": Fault("official-fp8", describe(b"{}"), (DIT, COMFY, "not a quantisation format")),
    "fp8 NaN": Fault("official-fp8", fill_byte(W1, 0x7F), (DIT, W1, "NaN")),
    "fp8 minus NaN": Fault("official-fp8", fill_byte(W3, 0xFF), (DIT, W3, "NaN")),
    "a scale of zero": Fault(
        "official-fp8", fill(DIT, f"{W1}_scale", 0.0, slice(1)), (DIT, f"{W1}_scale", "not positive")
    ),
    "a negative scale": Fault(
        "official-fp8", fill(DIT, f"{W3}_scale", -1.0, slice(1)), (DIT, f"{W3}_scale", "not positive")
    ),
    "a scale of NaN": Fault("official-fp8", fill(DIT, f"{W1}_scale", math.nan), (DIT, f"{W1}_scale", "NaN")),
    # nf4
    "a negative absmax": Fault(
        "official-nf4", fill(DIT, f"{W1}.absmax", -1.0, slice(1)), (DIT, f"{W1}.absmax", "negative")
    ),
    "an infinite absmax": Fault(
        "official-nf4", fill(DIT, f"{W3}.absmax", math.inf, slice(1)), (DIT, f"{W3}.absmax", "infinity")
    ),
    "a code book that falls": Fault(
        "official-nf4", fill(DIT, f"{W1}.quant_map", 0.0), (DIT, f"{W1}.quant_map", "do not rise")
    ),
    "a code book of NaN": Fault(
        "official-nf4", fill(DIT, f"{W3}.quant_map", math.nan), (DIT, f"{W3}.quant_map", "NaN")
    ),
    "a state nested too deep": Fault(
        "official-nf4",
        tensors(
            DIT,
            lambda held: held.update({f"{W1}.{STATE}": torch.full((100_000,), ord("["), dtype=torch.uint8)}),
        ),
        (DIT, f"{W1}.{STATE}"),
    ),
    "nf4 without absmax": Fault(
        "official-nf4",
        tensors(DIT, lambda held: held.pop(f"{W1}.absmax")),
        (DIT, f"{W1}.absmax", "missing"),
    ),
    "nf4 without state": Fault(
        "official-nf4",
        tensors(DIT, lambda held: held.pop(f"{W1}.{STATE}")),
        (DIT, W3, "quantised differently"),
    ),
    "half nf4": Fault("official-nf4", tensors(DIT, unquantise), (DIT, W3, "quantised differently", W1)),
    "two code books": Fault(
        "official-nf4",
        tensors(DIT, lambda held: held[f"{W3}.quant_map"].mul_(2)),
        (DIT, f"{W3}.quant_map", "differs"),
    ),
    "nf4 cut short": Fault(
        "official-nf4",
        tensors(DIT, lambda held: held.update({W1: held[W1][:-1].clone()})),
        (DIT, W1, "expected"),
    ),
    "blocks of 128": Fault(
        "official-nf4", declare(lambda declared: declared.update(blocksize=128)), (DIT, f"{W1}.{STATE}", "64")
    ),
    "double quantisation": Fault(
        "official-nf4",
        declare(lambda declared: declared.update(nested_blocksize=256)),
        (DIT, f"{W1}.{STATE}", "double"),
    ),
    "nf4 of another shape": Fault(
        "official-nf4",
        declare(lambda declared: declared.update(shape=[128, 192])),
        (DIT, f"{W1}.{STATE}", "(128, 192)", "(192, 128)"),
    ),
    "nf4 of no shape": Fault(
        "official-nf4", declare(lambda declared: declared.pop("shape")), (DIT, f"{W1}.{STATE}", "shape")
    ),
    "a state that is not JSON": Fault(
        "official-nf4",
        tensors(DIT, lambda held: held[f"{W1}.{STATE}"].fill_(0)),
        (DIT, f"{W1}.{STATE}"),
    ),
    "another 4-bit code": Fault(
        "official-nf4",
        tensors(
            TEXT,
            lambda held: held.update(
                {key.replace("__nf4", "__fp4"): held.pop(key) for key in list(held) if "q_proj" in key}
            ),
        ),
        (TEXT, "q_proj.weight", "expected"),
    ),
}


def narrow_text(held: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        "llm_cond_norm.weight": held["llm_cond_norm.weight"][:64].clone(),
        "llm_cond_proj.weight": held["llm_cond_proj.weight"][:, :64].clone(),
    }


def narrow_latents(held: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        "post_quant_conv.weight": held["post_quant_conv.weight"][:16, :16].clone(),
        "post_quant_conv.bias": held["post_quant_conv.bias"][:16].clone(),
        "decoder.conv_in.weight": held["decoder.conv_in.weight"][:, :16].clone(),
    }


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_broken_checkpoint_says_where(checkpoints: Checkpoints, tmp_path: Path, fault: Fault) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoints(fault.layout).path, folder)
    fault.do(folder)
    with pytest.raises(CheckpointError) as caught:
        load_pipeline(PartFolders.of(folder), "cpu", torch.float32)
    message = str(caught.value)
    assert str(folder) in message
    assert [word for word in fault.words if word not in message] == [], message


OVERFLOWS = {
    "text_encoder": (TEXT, "language_model.layers.1.mlp.down_proj.weight"),
    "transformer": (DIT, "final_layer.linear.weight"),
    "unconditional_transformer": (f"unconditional_{DIT}", "final_layer.linear.weight"),
}


@pytest.mark.parametrize("part", OVERFLOWS)
def test_the_warm_up_names_the_part_whose_weights_overflow(tmp_path: Path, part: str) -> None:
    folder = write_tiny(tmp_path)
    fill(*OVERFLOWS[part], 3e38)(folder)
    config, runner = ModelConfig.load(folder), load_runner(folder, torch.float32)
    with pytest.raises(CheckpointError, match=rf"/{part}: .*NaN or infinity"):
        measure(runner, config, EngineOptions())


def test_the_last_part_is_compared_before_the_first_is_loaded(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(checkpoint.path, tmp_path / "checkpoint")
    tensors(VAE, lambda held: held.pop("decoder.conv_out.bias"))(folder)
    monkeypatch.delattr(WeightFiles, "copy")
    with pytest.raises(CheckpointError, match=r"decoder\.conv_out\.bias: missing"):
        load_pipeline(PartFolders.of(folder), "cpu", torch.float32)


@pytest.mark.parametrize("layout", ["diffusers", "sharded"])
def test_files_that_other_systems_leave_are_ignored(
    checkpoints: Checkpoints, tmp_path: Path, layout: str
) -> None:
    folder = shutil.copytree(checkpoints(layout).path, tmp_path / "checkpoint")
    for part in (folder, *(each for each in folder.iterdir() if each.is_dir())):
        for file in [file for file in part.iterdir() if file.is_file()]:
            file.with_name(f"._{file.name}").write_bytes(b"\0\5\x16\7")
            file.with_name(f"{file.name}.tmp").write_bytes(b"half")
            file.with_name(f"{file.name}.incomplete").write_bytes(b"half")
        for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
            (part / name).write_bytes(b"")
        (part / ".cache" / "huggingface").mkdir(parents=True)
    open_tokenizer(ModelConfig.load(folder))
    load_pipeline(PartFolders.of(folder), "cpu", torch.float32)


def test_the_head_of_the_text_model_is_left_unread(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint.path, tmp_path / "checkpoint")
    tensors(TEXT, lambda held: held.update({"lm_head.weight": torch.full((512, 64), math.nan)}))(folder)
    load_pipeline(PartFolders.of(folder), "cpu", torch.float32)
