"""Files for ComfyUI: prefixed keys, and fp8 with one scale per matrix."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.checkpoint.loader import load_dit, load_pipeline
from engine.config.part_folders import PartFolders
from engine.quantized.fp8 import Fp8Linear
from tests.engine.checkpoints import edit_tensors
from tests.engine.conftest import Checkpoints
from tests.engine.quantisers import E4M3_MAX

WEIGHTS = "diffusion_pytorch_model.safetensors"
# Where the older and the newer kind of file keep the scale of a layer.
SCALES = ("scale_weight", "weight_scale")


@pytest.fixture
def folder(checkpoints: Checkpoints, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoints("official").path, tmp_path / "checkpoint")


def prefixed(prefix: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda held: held.update({prefix + key: held.pop(key) for key in list(held)})


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", "conditional_transformer."])
def test_prefixes_of_the_transformer(folder: Path, prefix: str) -> None:
    plain, _ = load_dit(folder / "transformer", "cpu", torch.float32)
    edit_tensors(folder / "transformer" / WEIGHTS, prefixed(prefix))
    loaded, _ = load_dit(folder / "transformer", "cpu", torch.float32)
    for (name, expected), found in zip(plain.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(found, expected), name


def test_the_prefix_of_the_text_encoder(folder: Path) -> None:
    def edit(held: dict[str, Tensor]) -> None:
        prefixed("model.")(held)
        held["lm_head.weight"] = torch.zeros(512, 64)

    plain = load_pipeline(PartFolders.of(folder), "cpu", torch.float32).text_encoder([1, 2, 3])
    edit_tensors(folder / "text_encoder" / "model.safetensors", edit)
    loaded = load_pipeline(PartFolders.of(folder), "cpu", torch.float32).text_encoder([1, 2, 3])
    assert torch.equal(loaded, plain)


@pytest.mark.parametrize("scale_name", SCALES)
def test_one_fp8_scale_per_matrix(folder: Path, scale_name: str) -> None:
    """Every row has the scale of its matrix; of fused matrices each part has its scale."""
    values: dict[str, Tensor] = {}

    def quantise(held: dict[str, Tensor]) -> None:
        for key in [key for key in held if key.startswith("layers.") and held[key].ndim == 2]:
            weight, layer = held[key], key.removesuffix(".weight")
            scale = weight.abs().max() / E4M3_MAX
            held[key] = (weight / scale).to(torch.float8_e4m3fn)
            held[f"{layer}.{scale_name}"] = scale
            values[key] = held[key].float() * scale
            if scale_name == "scale_weight":
                held[f"{layer}.scale_input"] = torch.tensor(1.0)
            else:
                description = json.dumps({"format": "float8_e4m3fn"}).encode()
                held[f"{layer}.comfy_quant"] = torch.tensor(list(description), dtype=torch.uint8)
        if scale_name == "scale_weight":
            held["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
        prefixed("diffusion_model.")(held)

    edit_tensors(folder / "transformer" / WEIGHTS, quantise)
    dit, layout = load_dit(folder / "transformer", "cpu", torch.bfloat16)
    assert layout == "official"
    layers = {name: layer for name, layer in dit.named_modules() if isinstance(layer, Fp8Linear)}
    assert {
        "layers.0.attention.qkv",
        "layers.1.feed_forward.w13",
        "layers.1.feed_forward.w2",
    } <= layers.keys()
    for name, layer in layers.items():
        sources = [f"{name}.weight"]
        if name.endswith("w13"):
            sources = [f"{name.removesuffix('w13')}{part}.weight" for part in ("w1", "w3")]
        expected = torch.cat([values[source] for source in sources])
        assert torch.equal(layer.weight.float() * layer.weight_scale[:, None], expected), name
