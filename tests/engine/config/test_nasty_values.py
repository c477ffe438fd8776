"""Extreme values in each field of each config: a CheckpointError, or an engine that works."""

import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.checkpoint.loader import load_pipeline
from engine.client.preflight import open_tokenizer
from engine.config.model_config import ModelConfig
from engine.config.options import EngineOptions
from engine.config.part_folders import PartFolders
from engine.errors import CheckpointError
from engine.models.resumable import drain
from engine.request import EngineRequest
from engine.runner.model_runner import ModelRunner
from engine.runner.request_state import RequestState
from engine.worker.warmup import measure
from tests.engine.checkpoints import TINY_DECLARED, write_tiny
from tests.engine.conftest import finish

NUMBERS = [0, 1, 2, 7, 10_000, 2**31, 2**63, 10**30, -1]
FRACTIONS = [0.5, 1e-300, 1e308, math.nan, math.inf, -math.inf]
OTHERS = [True, False, None, "", "1", "\ud800", [], [1], [0, 1], [1] * 9, {}, {"a": 1}]
NASTY: list[Any] = NUMBERS + FRACTIONS + OTHERS

# Keys of each file that the engine reads; numbers in a list are indices.
Keys = tuple[str | int, ...]
PARTS: dict[str, list[Keys]] = {
    "transformer/config.json": [
        ("in_channels",),
        ("num_layers",),
        ("attention_head_dim",),
        ("num_attention_heads",),
        ("intermediate_size",),
        ("adaln_dim",),
        ("llm_features_dim",),
        ("rope_theta",),
        ("mrope_section",),
        ("mrope_section", 0),
        ("mrope_section", 1),
        ("mrope_section", 2),
        ("norm_eps",),
    ],
    "text_encoder/config.json": [
        ("tap_layers",),
        ("tap_layers", 1),
        ("text_config",),
        *(
            ("text_config", key)
            for key in (
                "vocab_size",
                "hidden_size",
                "intermediate_size",
                "num_hidden_layers",
                "num_attention_heads",
                "num_key_value_heads",
                "head_dim",
                "rms_norm_eps",
                "max_position_embeddings",
                "hidden_act",
                "attention_bias",
                "rope_theta",
                "rope_scaling",
                "rope_parameters",
            )
        ),
        ("text_config", "rope_parameters", "rope_theta"),
        ("text_config", "rope_parameters", "rope_type"),
    ],
    "vae/config.json": [
        ("latent_channels",),
        ("out_channels",),
        ("block_out_channels",),
        ("block_out_channels", 1),
        ("decoder_block_out_channels",),
        ("layers_per_block",),
        ("norm_num_groups",),
        ("mid_block_add_attention",),
        ("use_post_quant_conv",),
        ("batch_norm_eps",),
        ("patch_size",),
        ("patch_size", 0),
        ("act_fn",),
    ],
    "vae/latent_rgb.json": [("weight",), ("weight", 0), ("weight", 0, 0), ("bias",), ("bias", 2)],
    "ideoserve.json": [
        ("id",),
        ("limits",),
        *(("limits", key) for key in TINY_DECLARED["limits"]),
        ("default_size",),
        ("presets",),
        ("presets", "FAST"),
        *(("presets", "FAST", key) for key in TINY_DECLARED["presets"]["FAST"]),
        ("presets", "FAST", "guidance_schedule", 0),
        ("presets", "FAST", "guidance_schedule", 0, 0),
        ("presets", "FAST", "guidance_schedule", 0, 1),
    ],
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny(tmp_path_factory.mktemp("tiny"))
    rgb = {"weight": [[0.1, 0.2, 0.3]] * 4, "bias": [0.0, 0.1, 0.2]}
    (folder / "vae" / "latent_rgb.json").write_text(json.dumps(rgb), "utf-8")
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """With so little work, several threads would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("file", "keys"),
    [(file, keys) for file, each in PARTS.items() for keys in each],
    ids=lambda value: value if isinstance(value, str) else ".".join(map(str, value)),
)
def test_an_error_or_a_working_engine(tiny: Path, tmp_path: Path, file: str, keys: Keys) -> None:
    folder = shutil.copytree(tiny, tmp_path / "checkpoint")
    for value, declared in _each_nasty(json.loads((folder / file).read_text("utf-8")), keys):
        (folder / file).write_text(json.dumps(declared), "utf-8")
        if (error := refusal(folder, value)) is not None:
            named = rf"{re.escape(str(folder))}/[\w/.]+: (.+: .+|Invalid JSON: .+)"
            assert re.fullmatch(named, error), (value, error)


def refusal(folder: Path, value: Any) -> str | None:
    """The message of the CheckpointError, or None if the engine works. Raises any other exception."""
    try:
        use(folder)
    except CheckpointError as error:
        return str(error)
    except Exception as error:
        raise AssertionError(f"{value!r:.60}") from error
    return None


def test_the_tiny_checkpoint_serves(tiny: Path) -> None:
    use(tiny)


def _each_nasty(declared: Any, keys: Keys) -> Iterator[tuple[Any, Any]]:
    """Yield each extreme value, and `declared` with this value at `keys`."""
    owner = declared
    for key in keys[:-1]:
        owner = owner[key]
    for value in NASTY:
        owner[keys[-1]] = value
        yield value, declared


def use(folder: Path) -> None:
    """Load the checkpoint as the server and its worker do, and generate an image with each preset."""
    config = ModelConfig.load(folder)
    json.dumps(config.model_id).encode()
    ids = open_tokenizer(config).encode("a fox")
    runner = ModelRunner(load_pipeline(PartFolders.of(folder), "cpu", torch.float32), "cpu")
    measure(runner, config, EngineOptions())
    for sampling in config.presets.values():
        request = EngineRequest("1", ids, config.default_width, config.default_height, (1,), sampling, 1)
        state = RequestState(request)
        (state.conditioning,) = drain(runner.encode([request]))
        sample = runner.new_sample(state, 0)
        (pixels,) = drain(runner.decode([finish(runner, sample)]))
        assert len(pixels) == 3 * config.default_width * config.default_height
