"""`ideoserve.json`: what a checkpoint says about itself, and every way to say it wrongly."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from engine.config import PUBLISHED_PRESETS, Limits, ModelConfig, Preset
from engine.errors import CheckpointError

TURBO = {"num_inference_steps": 3, "guidance_schedule": [[5, 2], [1, 1]], "mu": 0.5, "std": 1.75}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The least that counts as a checkpoint's folder."""
    folder = tmp_path / "some-model"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}", "utf-8")
    return folder


def declare(folder: Path, declared: Any) -> Path:
    (folder / "ideoserve.json").write_text(json.dumps(declared), "utf-8")
    return folder


def test_without_a_file_it_is_the_published_model(folder: Path) -> None:
    config = ModelConfig.load(folder)
    assert (config.model_id, config.default_preset) == ("some-model", "V4_DEFAULT_20")
    assert (config.default_width, config.default_height) == (1024, 1024)
    assert (config.limits, config.presets) == (Limits(256, 2048, 16, 6.0, 2048), PUBLISHED_PRESETS)


def test_published_presets() -> None:
    steps = {name: preset.num_inference_steps for name, preset in PUBLISHED_PRESETS.items()}
    assert steps == {"V4_QUALITY_48": 48, "V4_DEFAULT_20": 20, "V4_TURBO_12": 12}
    assert PUBLISHED_PRESETS["V4_QUALITY_48"].guidance_schedule == (7.0,) * 45 + (3.0,) * 3
    assert PUBLISHED_PRESETS["V4_DEFAULT_20"].guidance_schedule == (7.0,) * 18 + (3.0,) * 2
    assert PUBLISHED_PRESETS["V4_TURBO_12"].guidance_schedule == (7.0,) * 11 + (3.0,)
    numbers = {(preset.mu, preset.std) for preset in PUBLISHED_PRESETS.values()}
    assert numbers == {(0.0, 1.5), (0.0, 1.75), (0.5, 1.75)}


def test_everything_declared(folder: Path) -> None:
    limits = {"min_size": 64, "max_size": 128}
    declared = {"id": "demo", "limits": limits, "default_size": "128x64", "presets": {"FAST": TURBO}}
    config = ModelConfig.load(declare(folder, declared))
    assert (config.model_id, config.default_width, config.default_height) == ("demo", 128, 64)
    assert config.limits == Limits(64, 128, 16, 6.0, 2048)
    assert config.presets == {"FAST": Preset((5.0, 5.0, 1.0), 0.5, 1.75)}
    assert config.default_preset == "FAST"
    assert ModelConfig.load(folder, model_id="mine").model_id == "mine"


def test_the_documents_example_is_the_published_model(folder: Path) -> None:
    document = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text("utf-8")
    example = document.partition("```json\n")[2].partition("```")[0]
    (folder / "ideoserve.json").write_text(example, "utf-8")
    config = ModelConfig.load(folder)
    assert (config.limits, config.default_width, config.default_height) == (Limits(), 1024, 1024)
    assert config.presets == {"V4_TURBO_12": PUBLISHED_PRESETS["V4_TURBO_12"]}


FAULTS: dict[str, Any] = {
    "object": [],
    "size": {"size": 3},
    "limits.most": {"limits": {"most": 3}},
    "limits.max_size": {"limits": {"max_size": "128"}},
    "limits.min_size": {"limits": {"min_size": 0}},
    "limits.multiple_of": {"limits": {"multiple_of": -16}},
    "limits": {"limits": [1]},
    "default_size": {"default_size": 128},
    "default_size ": {"default_size": "128"},
    "default_size  ": {"default_size": "axb"},
    "presets": {"presets": {}},
    "presets ": {"presets": [TURBO]},
    "presets.FAST": {"presets": {"FAST": 3}},
    "presets.FAST.mu": {"presets": {"FAST": TURBO | {"mu": "x"}}},
    "presets.FAST: .*guidance_schedule covers 3 steps": {
        "presets": {"FAST": TURBO | {"num_inference_steps": 4}}
    },
    "presets.FAST.std": {"presets": {"FAST": {key: TURBO[key] for key in TURBO if key != "std"}}},
    "id": {"id": 3},
}


@pytest.mark.parametrize("key", FAULTS)
def test_a_fault_names_file_and_key(folder: Path, key: str) -> None:
    with pytest.raises(CheckpointError, match=rf"ideoserve\.json: .*{key.strip()}"):
        ModelConfig.load(declare(folder, FAULTS[key]))


@pytest.mark.parametrize("content", [b"{", b"\xff"])
def test_what_is_not_json_names_the_file(folder: Path, content: bytes) -> None:
    (folder / "ideoserve.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"ideoserve\.json"):
        ModelConfig.load(folder)


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model_index\.json"):
        ModelConfig.load(tmp_path)


def test_the_fingerprint_follows_the_weights_and_not_the_place(folder: Path, tmp_path: Path) -> None:
    (folder / "a.safetensors").write_bytes(b"weights")
    before = ModelConfig.load(folder).fingerprint
    assert before == ModelConfig.load(shutil.copytree(folder, tmp_path / "copy")).fingerprint
    (folder / "a.safetensors").write_bytes(b"weighty")
    assert before != ModelConfig.load(folder).fingerprint
