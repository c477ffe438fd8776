"""Layers with prepacked weights compute the same products, and replace only layers that gain."""

import pytest
import torch
from torch import nn

from engine.checkpoint.loader import load_pipeline
from engine.config.part_folders import PartFolders
from engine.kernels import linear
from engine.kernels.feed_forward import FeedForward, PrepackedFeedForward, prepacked
from engine.kernels.linear import PrepackedLinear
from engine.kernels.prepack import prepack_weights
from engine.runner.model_runner import ModelRunner
from tests.engine.checkpoints import Checkpoint


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "MIN_WEIGHTS", 0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 7, 300])
def test_a_prepacked_linear_is_the_linear(bias: bool, rows: int) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(48, 72, bias))
    x = torch.randn(rows, 48)
    with torch.inference_mode():
        expected = plain(x)
        prepack_weights(plain)
        assert isinstance(plain[0], PrepackedLinear)
        torch.testing.assert_close(plain(x), expected, atol=1e-6, rtol=1e-5)


def test_a_prepacked_mlp_is_the_mlp() -> None:
    torch.manual_seed(0)
    mlp, x = FeedForward(64, 200), torch.randn(7, 64)
    gaining = prepacked(mlp)
    assert isinstance(gaining, PrepackedFeedForward)
    with torch.inference_mode():
        torch.testing.assert_close(gaining(x), mlp(x), atol=1e-6, rtol=1e-5)


def test_a_small_matrix_stays_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "MIN_WEIGHTS", 48 * 72)
    layers = nn.Sequential(nn.Linear(48, 71), nn.Linear(48, 72))
    prepack_weights(layers)
    assert [type(layer) for layer in layers] == [nn.Linear, PrepackedLinear]


@pytest.mark.parametrize("wanted", [True, False])
def test_a_runner_prepacks_every_plain_weight_of_the_transformers_and_the_text_encoder(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Checkpoint, wanted: bool
) -> None:
    monkeypatch.setattr("engine.runner.model_runner.wants_prepacked_weights", lambda _: wanted)
    pipeline = load_pipeline(PartFolders.of(checkpoint.path), "cpu", torch.float32)
    ModelRunner(pipeline, "cpu")
    for part in (pipeline.conditional, pipeline.unconditional, pipeline.text_encoder):
        kinds = {type(module) for module in part.modules()}
        assert (nn.Linear in kinds, PrepackedLinear in kinds) == (not wanted, wanted)
