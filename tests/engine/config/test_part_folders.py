"""Another transformer in a checkpoint, and its presets."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.config.model_config import ModelConfig
from engine.errors import CheckpointError

STEPS = {"num_inference_steps": 2, "mu": 0.0, "std": 1.5}
GUIDED = {**STEPS, "guidance_schedule": [[5.0, 2]]}
DISTILLED = {**STEPS, "guidance_schedule": [[1.0, 2]]}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A checkpoint with both transformers and one guided preset."""
    folder = write(tmp_path / "base", {"presets": {"GUIDED": GUIDED}})
    (folder / "model_index.json").write_text("{}", "utf-8")
    for part in ("transformer", "unconditional_transformer"):
        write(folder / part)
    return folder


@pytest.fixture
def distilled(tmp_path: Path) -> Path:
    """A folder with a transformer alone, and its preset without guidance."""
    return write(tmp_path / "distilled", {"presets": {"EIGHT": DISTILLED}})


def write(folder: Path, declared: Any = None) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}", "utf-8")
    if declared:
        (folder / "ideoserve.json").write_text(json.dumps(declared), "utf-8")
    return folder


def test_a_checkpoint_has_its_own_parts(base: Path) -> None:
    folders = ModelConfig.load(base).folders
    assert folders.transformer == base / "transformer"
    assert folders.unconditional == base / "unconditional_transformer"


def test_a_transformer_brings_its_presets(base: Path, distilled: Path) -> None:
    config = ModelConfig.load(base, transformer=distilled)
    assert list(config.presets) == ["EIGHT"]
    assert config.folders.transformer == distilled
    assert config.folders.vae == base / "vae"


def test_a_transformer_without_presets_has_those_of_the_checkpoint(base: Path, tmp_path: Path) -> None:
    config = ModelConfig.load(base, transformer=write(tmp_path / "plain"))
    assert list(config.presets) == ["GUIDED"]
    assert config.folders.unconditional == base / "unconditional_transformer"


def test_a_file_of_presets_comes_first(base: Path, distilled: Path, tmp_path: Path) -> None:
    file = tmp_path / "presets.json"
    file.write_text(json.dumps({"MINE": DISTILLED}), "utf-8")
    assert list(ModelConfig.load(base, transformer=distilled, presets_file=file).presets) == ["MINE"]
    assert list(ModelConfig.load(base, presets_file=file).presets) == ["MINE"]


def test_without_guidance_the_unconditional_transformer_is_left_out(base: Path, distilled: Path) -> None:
    config = ModelConfig.load(base, transformer=distilled)
    assert not config.is_guided
    assert config.folders.unconditional is None


def test_the_folder_of_a_whole_checkpoint(base: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", {"presets": {"EIGHT": DISTILLED}})
    write(other / "transformer")
    assert ModelConfig.load(base, transformer=other).folders.transformer == other / "transformer"


def test_the_checkpoint_needs_no_transformer_then(base: Path, distilled: Path) -> None:
    for part in ("transformer", "unconditional_transformer"):
        (base / part / "config.json").unlink()
        (base / part).rmdir()
    assert ModelConfig.load(base, transformer=distilled).folders.unconditional is None


def test_the_fingerprint_covers_the_transformer_in_use(base: Path, distilled: Path) -> None:
    (base / "model.safetensors").write_bytes(b"weights")
    plain = ModelConfig.load(base).fingerprint
    before = ModelConfig.load(base, transformer=distilled).fingerprint
    (base / "transformer" / "config.json").write_text('{"num_layers": 3}', "utf-8")
    assert plain != before == ModelConfig.load(base, transformer=distilled).fingerprint
    (distilled / "config.json").write_text('{"num_layers": 3}', "utf-8")
    assert before != ModelConfig.load(base, transformer=distilled).fingerprint


def test_faults_name_the_folder_or_the_file(base: Path, distilled: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: no such folder"):
        ModelConfig.load(base, transformer=tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"nowhere\.json: No such file"):
        ModelConfig.load(base, presets_file=tmp_path / "nowhere.json")
    (tmp_path / "presets.json").write_text(json.dumps({"MINE": {**DISTILLED, "mu": 11}}), "utf-8")
    with pytest.raises(CheckpointError, match=r"presets\.json: MINE\.mu: .* not 11"):
        ModelConfig.load(base, presets_file=tmp_path / "presets.json")
    (distilled / "config.json").unlink()
    with pytest.raises(CheckpointError, match="distilled: neither"):
        ModelConfig.load(base, transformer=distilled)
