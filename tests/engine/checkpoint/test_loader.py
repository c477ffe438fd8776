"""Memory after loading: quantised weights as stored, no vision tower, no second copies."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Ideogram4Transformer2DModel
from safetensors.torch import load_file
from torch import Tensor, nn

from engine.checkpoint.latents import LATENT_NORM
from engine.checkpoint.loader import Pipeline, load_dit, load_pipeline
from engine.checkpoint.weight_files import WeightFiles
from engine.config.model_config import ModelConfig
from engine.config.part_folders import PartFolders
from engine.errors import CheckpointError
from engine.quantized.fp8 import Fp8Linear
from engine.quantized.nf4 import NF4Linear
from engine.runner.model_runner import ModelRunner
from tests.engine import reference
from tests.engine.checkpoints import DIT_CONFIG, Checkpoint, edit_tensors
from tests.engine.conftest import Checkpoints, Runners, finish, load_runner, start
from tests.engine.memory import PeakMemory
from tests.engine.quantisers import fp8, nf4
from tests.engine.reference import Job

QUANTISED = {
    "official-fp8": (Fp8Linear, torch.float8_e4m3fn, 1.0),
    "official-nf4": (NF4Linear, torch.uint8, 0.5),
}
VAE_FILE = "vae/diffusion_pytorch_model.safetensors"
UNREAD = ("visual.", "bn.", "language_model.norm.")


@pytest.mark.parametrize("layout", QUANTISED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantised_weights_are_kept_as_stored(
    checkpoints: Checkpoints, layout: str, dtype: torch.dtype
) -> None:
    pipeline = load_pipeline(PartFolders.of(checkpoints(layout).path), "cpu", dtype)
    kind, stored, bytes_each = QUANTISED[layout]
    for part in (pipeline.text_encoder, pipeline.conditional, pipeline.unconditional):
        assert not [name for name, module in part.named_modules() if type(module) is nn.Linear]
        layers = [module for module in part.modules() if isinstance(module, Fp8Linear | NF4Linear)]
        assert layers
        for layer in layers:
            assert isinstance(layer, kind)
            assert layer.weight.dtype == stored
            assert layer.weight.nbytes == math.prod(layer.shape) * bytes_each
            assert layer.bias is None or layer.bias.dtype == dtype
        scales = [value for name, value in part.named_parameters() if name.endswith(("_scale", "absmax"))]
        assert {scale.dtype for scale in scales} == {torch.float32}
    assert {parameter.dtype for parameter in pipeline.vae.parameters()} == {dtype}


def test_as_many_bytes_in_memory_as_in_the_files(checkpoints: Checkpoints, layout: str) -> None:
    pipeline = load_pipeline(PartFolders.of(checkpoints(layout).path), "cpu", torch.float32)
    for part, module in (
        ("transformer", pipeline.conditional),
        ("unconditional_transformer", pipeline.unconditional),
        ("text_encoder", pipeline.text_encoder),
        ("vae", nn.ModuleList(filter(None, (pipeline.vae, pipeline.vae_encoder)))),
    ):
        kept = sum(parameter.nbytes for parameter in module.parameters())
        assert kept == _stored_bytes(checkpoints(layout).path / part), part


@pytest.mark.parametrize("layout", ["diffusers", *QUANTISED])
def test_loading_holds_no_second_copy(checkpoints: Checkpoints, layout: str) -> None:
    with PeakMemory() as peak:
        pipeline = load_pipeline(PartFolders.of(checkpoints(layout).path), "cpu", torch.float32)
    assert peak.bytes < 1.15 * _parameter_bytes(pipeline)


def test_the_vision_tower_is_never_read(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "visual.patch_embed.proj.weight" in WeightFiles(checkpoint.path / "text_encoder")
    used: list[str] = []
    for name in ("read", "copy"):
        monkeypatch.setattr(WeightFiles, name, _noting(used, getattr(WeightFiles, name)))
    pipeline = load_pipeline(PartFolders.of(checkpoint.path), "cpu", torch.float32)
    assert "language_model.layers.35.mlp.down_proj.weight" in used
    assert not [key for key in used if key.startswith(("visual.", "language_model.norm."))]
    assert not [name for name, _ in pipeline.text_encoder.named_modules() if "visual" in name]


def test_the_vae_encoder_is_optional(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is loaded if the checkpoint has it and edits are on."""
    assert ModelConfig.load(checkpoint.path).can_edit
    assert load_pipeline(PartFolders.of(checkpoint.path), "cpu", torch.float32).vae_encoder
    used: list[str] = []
    monkeypatch.setattr(WeightFiles, "copy", _noting(used, WeightFiles.copy))
    assert not load_pipeline(PartFolders.of(checkpoint.path), "cpu", torch.float32, edits=False).vae_encoder
    assert not [key for key in used if key.startswith(("encoder.", "quant_conv."))]
    folder = shutil.copytree(checkpoint.path, tmp_path / "checkpoint")
    edit_tensors(folder / VAE_FILE, lambda held: [held.pop(key) for key in [*held] if key.startswith("enc")])
    assert not ModelConfig.load(folder).can_edit
    assert not load_pipeline(PartFolders.of(folder), "cpu", torch.float32).vae_encoder


def test_without_an_unconditional_transformer_the_first_is_both(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(checkpoint.path, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "unconditional_transformer")
    runner = load_runner(tmp_path, torch.float32)
    assert runner.pipeline.unconditional is runner.pipeline.conditional
    job = Job("a fox", 96, 64, guidance=(7.0, 3.0))
    sample = finish(runner, start(runner, checkpoint, job))
    monkeypatch.setattr(checkpoint.referee, "unconditional_transformer", checkpoint.referee.transformer)
    expected = reference.sample(checkpoint.referee, job)
    assert (sample.latents - expected).abs().max() < 1e-3


def test_a_replaced_transformer_without_guidance(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It draws what diffusers draws with it, and no unconditional weights are loaded."""
    base, other = checkpoints("diffusers"), checkpoints("sharded")
    folders = PartFolders.of(base.path, other.path, is_guided=False)
    runner = ModelRunner(load_pipeline(folders, "cpu", torch.float32), "cpu")
    assert runner.pipeline.unconditional is runner.pipeline.conditional
    job = Job("a fox", 96, 64, guidance=(1.0, 1.0))
    sample = finish(runner, start(runner, base, job))
    monkeypatch.setattr(base.referee, "transformer", other.referee.transformer)
    assert (sample.latents - reference.sample(base.referee, job)).abs().max() < 1e-3


def test_the_official_layout_has_published_latent_statistics(runners: Runners) -> None:
    published = json.loads(LATENT_NORM.read_text("utf-8"))
    norm = runners("official").pipeline.latent_norm
    assert norm.scale.tolist() == pytest.approx(published["scale"])
    assert norm.shift.tolist() == pytest.approx(published["shift"])
    # Sums of the published table: a copy with one number lost would differ.
    assert (norm.scale.sum().item(), norm.shift.sum().item()) == pytest.approx((213.5446, -0.9297), abs=1e-3)


@pytest.mark.parametrize("shape", [(96, 64), (3, 192), (130, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_widened_nf4(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    stored, expected = nf4("weight", weight)
    layer = NF4Linear(shape[1], shape[0], bias=False)
    layer.weight = _parameter(stored["weight"].flatten())
    layer.absmax = _parameter(stored["weight.absmax"])
    layer.quant_map = _parameter(stored["weight.quant_map"])
    assert torch.equal(layer.dequantize(dtype), expected.to(dtype))
    x = torch.randn(5, shape[1], generator=torch.Generator().manual_seed(5)).to(dtype)
    assert torch.equal(layer(x), nn.functional.linear(x, expected.to(dtype)))


def test_stacked_nf4_needs_whole_blocks_in_a_row(tmp_path: Path) -> None:
    narrow = DIT_CONFIG | {"num_attention_heads": 3}
    Ideogram4Transformer2DModel(**narrow).save_pretrained(tmp_path)
    key = "layers.0.feed_forward.w1.weight"

    def quantise(held: dict[str, Tensor]) -> None:
        for each in (key, key.replace("w1", "w3")):
            held.update(nf4(each, held[each])[0])

    edit_tensors(tmp_path / "diffusion_pytorch_model.safetensors", quantise)
    with pytest.raises(CheckpointError, match=f"{key}.*rows of 96"):
        load_dit(tmp_path, "cpu", torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_widened_fp8(dtype: torch.dtype) -> None:
    weight = torch.randn(48, 40, generator=torch.Generator().manual_seed(3))
    stored, expected = fp8("weight", weight)
    bias = torch.randn(48, generator=torch.Generator().manual_seed(4)).to(dtype)
    layer = Fp8Linear(40, 48, bias=True)
    layer.weight = _parameter(stored["weight"])
    layer.weight_scale = _parameter(stored["weight_scale"])
    layer.bias = _parameter(bias)
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(5)).to(dtype)
    exact = nn.functional.linear(x.double(), expected.double(), bias.double())
    assert layer(x).dtype == dtype
    assert (layer(x) - exact).norm() < 4 * exact.norm() * torch.finfo(dtype).eps


def _noting(keys: list[str], method: Callable[..., Any]) -> Callable[..., Any]:
    def call(files: WeightFiles, key: str, *args: Any) -> Any:
        keys.append(key)
        return method(files, key, *args)

    return call


def _parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def _parameter_bytes(pipeline: Pipeline) -> int:
    parts = (pipeline.text_encoder, pipeline.conditional, pipeline.unconditional, pipeline.vae)
    encoder = [pipeline.vae_encoder] if pipeline.vae_encoder else []
    return sum(parameter.nbytes for part in (*parts, *encoder) for parameter in part.parameters())


def _stored_bytes(folder: Path) -> int:
    """Bytes of the tensors that are kept. w3 shares the code book of w1; quantisation states are not kept."""
    total = 0
    for file in folder.glob("*.safetensors"):
        for key, tensor in load_file(file).items():
            if not key.startswith(UNREAD) and not key.endswith(("__nf4", ".w3.weight.quant_map")):
                total += tensor.nbytes
    return total
