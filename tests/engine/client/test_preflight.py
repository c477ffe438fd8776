"""Checks of a checkpoint before a worker is spawned."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.client.preflight import open_tokenizer
from engine.config.model_config import ModelConfig
from engine.config.options import EngineOptions
from engine.errors import CheckpointError
from engine.worker.warmup import measure
from tests.engine.checkpoints import edit_json, write_tiny
from tests.engine.conftest import load_runner


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny, tmp_path / "checkpoint")


def limits(**changed: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "ideoserve.json", lambda it: it["limits"].update(changed))


def config(part: str, **changed: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / part / "config.json", lambda it: it.update(changed))


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "half a token": (
        limits(multiple_of=2),
        r"ideoserve\.json: limits\.multiple_of: 2 is not a multiple of 4",
    ),
    "more prompt than positions": (
        limits(max_prompt_tokens=513),
        r"ideoserve\.json: limits\.max_prompt_tokens: 513, .*max_position_embeddings is 512",
    ),
    "no room for a prompt": (limits(max_prompt_tokens=1), r"ideoserve\.json: limits\.max_prompt_tokens: 1, "),
    "fewer tokens than the tokenizer has": (
        lambda folder: edit_json(
            folder / "text_encoder" / "config.json", lambda it: it["text_config"].update(vocab_size=200)
        ),
        r"tokenizer/tokenizer\.json: .*id \d+, but text_encoder/config\.json: vocab_size is 200",
    ),
    "other features": (
        config("transformer", llm_features_dim=48),
        r"transformer/config\.json: llm_features_dim: 48, .*32",
    ),
    "other latents in the unconditional one": (
        config("unconditional_transformer", in_channels=32),
        r"unconditional_transformer/config\.json: in_channels: 32, .*16",
    ),
    "a template that raises": (
        lambda folder: (folder / "tokenizer" / "chat_template.jinja").write_text("{{ 1 / 0 }}"),
        r"chat_template\.jinja: chat_template: ZeroDivisionError",
    ),
    "a preview map of NaN": (
        lambda folder: (folder / "vae" / "latent_rgb.json").write_text('{"weight": [], "bias": [NaN, 0, 0]}'),
        r"latent_rgb\.json: bias\.0",
    ),
}


@pytest.mark.parametrize(("fault", "problem"), FAULTS.values(), ids=FAULTS)
def test_parts_that_do_not_match(folder: Path, fault: Callable[[Path], object], problem: str) -> None:
    fault(folder)
    with pytest.raises(CheckpointError, match=problem):
        open_tokenizer(ModelConfig.load(folder))


def test_the_size_of_a_token_is_the_vaes(folder: Path) -> None:
    """One more level doubles it, so that the limits are no longer multiples of it."""
    open_tokenizer(ModelConfig.load(folder))
    config("vae", block_out_channels=[8, 8, 8])(folder)
    with pytest.raises(CheckpointError, match=r"limits\.multiple_of: 4 is not a multiple of 8"):
        open_tokenizer(ModelConfig.load(folder))


def test_the_warm_up_keeps_to_a_small_prompt_limit(folder: Path) -> None:
    frame = len(open_tokenizer(ModelConfig.load(folder)).encode(""))
    assert frame < 16, "shorter than the prompts that the warm-up measures"
    limits(max_prompt_tokens=frame + 1)(folder)
    open_tokenizer(ModelConfig.load(folder))
    cost = measure(load_runner(folder, torch.float32), ModelConfig.load(folder), EngineOptions())
    assert cost.encode.seconds([1]) > 0


def test_the_demo_model_passes() -> None:
    demo = Path(__file__).parents[3] / "models" / "demo"
    assert json.loads((demo / "ideoserve.json").read_text("utf-8"))["limits"]["multiple_of"] == 16
    open_tokenizer(ModelConfig.load(demo))
