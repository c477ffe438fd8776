"""Weights in oneDNN's layout: the same products, and chosen by what the processor has."""

import pytest
import torch
from torch import nn

from engine.checkpoint import load_pipeline
from engine.device import wants_packed_weights
from engine.model_runner import ModelRunner
from engine.models import packed_linear
from engine.models.dit import DiTConfig, FeedForward
from engine.models.packed_linear import PackedFeedForward, PackedLinear, pack_linears
from tests.engine.checkpoints import Checkpoint

CONFIG = DiTConfig(
    attention_head_dim=64, num_attention_heads=1, intermediate_size=200, mrope_section=(8, 4, 4)
)


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_linear, "MIN_WEIGHTS", 0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 7, 300])
def test_a_packed_linear_is_the_linear(bias: bool, rows: int) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(48, 72, bias))
    x = torch.randn(rows, 48)
    with torch.inference_mode():
        expected = plain(x)
        pack_linears(plain)
        assert isinstance(plain[0], PackedLinear)
        torch.testing.assert_close(plain(x), expected, atol=1e-6, rtol=1e-5)


def test_a_packed_mlp_is_the_mlp() -> None:
    torch.manual_seed(0)
    mlp, x = FeedForward(CONFIG), torch.randn(7, 64)
    packed = mlp.packed()
    assert isinstance(packed, PackedFeedForward)
    with torch.inference_mode():
        torch.testing.assert_close(packed(x), mlp(x), atol=1e-6, rtol=1e-5)


def test_a_small_matrix_stays_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_linear, "MIN_WEIGHTS", 48 * 72)
    layers = nn.Sequential(nn.Linear(48, 71), nn.Linear(48, 72))
    pack_linears(layers)
    assert [type(layer) for layer in layers] == [nn.Linear, PackedLinear]


@pytest.mark.parametrize(
    ("device", "instructions", "expected"),
    [("cpu", {"avx512_f": True}, True), ("cpu", {"avx2": True}, False), ("cuda", {"avx512_f": True}, False)],
)
def test_the_layout_is_chosen_by_the_processor(
    monkeypatch: pytest.MonkeyPatch, device: str, instructions: dict[str, bool], expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    assert wants_packed_weights(torch.device(device)) == expected


@pytest.mark.parametrize("packed", [True, False])
def test_a_runner_packs_every_plain_weight_of_the_transformers_and_the_text_encoder(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Checkpoint, packed: bool
) -> None:
    monkeypatch.setattr("engine.model_runner.wants_packed_weights", lambda _: packed)
    pipeline = load_pipeline(checkpoint.path, "cpu", torch.float32)
    ModelRunner(pipeline, "cpu")
    for part in (pipeline.conditional, pipeline.unconditional, pipeline.text_encoder):
        kinds = {type(module) for module in part.modules()}
        assert (nn.Linear in kinds, PackedLinear in kinds) == (not packed, packed)
