"""Every way a checkpoint can be broken ends in a CheckpointError that names the file and the key."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.checkpoint import load_pipeline
from engine.errors import CheckpointError
from tests.engine.checkpoints import edit_json, edit_tensors
from tests.engine.conftest import Checkpoints

DIT = "transformer/diffusion_pytorch_model.safetensors"
INDEX = f"{DIT}.index.json"
TEXT = "text_encoder/model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
W1 = "layers.1.feed_forward.w1.weight"
W3 = "layers.1.feed_forward.w3.weight"
NORM = "layers.0.attention_norm1.weight"
QUERY = "layers.0.attention.to_q.weight"
STATE = "quant_state.bitsandbytes__nf4"


@dataclass(frozen=True)
class Fault:
    """What to do to a good checkpoint's folder, and the words the error must have."""

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
    # shards
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
    "unknown layout": Fault(
        "diffusers",
        tensors(DIT, lambda held: held.update(query=held.pop(QUERY))),
        (DIT, QUERY, "layers.0.attention.qkv.weight", "unknown layout"),
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
    # text encoder
    "35 layers": Fault(
        "diffusers",
        text_config(num_hidden_layers=35),
        ("text_encoder/config.json", "tap_layers: 35", "num_hidden_layers: 35"),
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
        tensors(DIT, lambda held: held.update({f"{W1}_scale": torch.ones(1)})),
        (DIT, f"{W1}_scale", "(1,)"),
    ),
    "a scale of whole numbers": Fault(
        "official-fp8",
        tensors(DIT, lambda held: held.update({f"{W1}_scale": torch.ones(192, dtype=torch.int32)})),
        (DIT, f"{W1}_scale", "I32"),
    ),
    # nf4
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
        load_pipeline(folder, "cpu", torch.float32)
    message = str(caught.value)
    assert str(folder) in message
    assert [word for word in fault.words if word not in message] == [], message
