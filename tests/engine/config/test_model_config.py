"""`ideoserve.json`: valid and invalid values, the model id and unreadable files."""

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.config.model_config import PUBLISHED_PRESETS, Limits, ModelConfig
from engine.errors import CheckpointError
from engine.request import SamplingParams
from tests.engine.checkpoints import TINY_DECLARED

TURBO = {"num_inference_steps": 3, "guidance_schedule": [[5, 2], [1, 1]], "mu": 0.5, "std": 1.75}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A minimal checkpoint folder."""
    folder = tmp_path / "some-model"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}", "utf-8")
    return folder


def declare(folder: Path, declared: Any) -> Path:
    (folder / "ideoserve.json").write_text(json.dumps(declared), "utf-8")
    return folder


def test_the_published_model_is_the_default(folder: Path) -> None:
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
    assert config.presets == {"FAST": SamplingParams((5.0, 5.0, 1.0), 0.5, 1.75)}
    assert config.default_preset == "FAST"
    assert ModelConfig.load(folder, model_id="mine").model_id == "mine"


def test_the_documents_example_is_the_published_model(folder: Path) -> None:
    document = (Path(__file__).parents[3] / "docs" / "checkpoints.md").read_text("utf-8")
    example = document.partition("```json\n")[2].partition("```")[0]
    (folder / "ideoserve.json").write_text(example, "utf-8")
    config = ModelConfig.load(folder)
    assert (config.limits, config.default_width, config.default_height) == (Limits(), 1024, 1024)
    assert config.presets == {"V4_TURBO_12": PUBLISHED_PRESETS["V4_TURBO_12"]}


def test_the_document_lists_every_field() -> None:
    document = (Path(__file__).parents[3] / "docs" / "checkpoints.md").read_text("utf-8")
    declared = TINY_DECLARED
    fields = ["id", "default_size", "presets"]
    fields += [f"limits.{key}" for key in declared["limits"]]
    fields += [f"presets.*.{key}" for key in declared["presets"]["FAST"]]
    assert [field for field in fields if f"`{field}`" not in document] == []


def limits(**changed: Any) -> dict[str, Any]:
    return {"limits": changed, "default_size": "512x512"}


def preset(name: str = "FAST", **changed: Any) -> dict[str, Any]:
    return {"presets": {name: TURBO | changed}}


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
    "id ": {"id": ""},
    "id  ": {"id": "a\nb"},
    "id   ": {"id": "/a"},
    "id    ": {"id": " a"},
    "id     ": {"id": "a" * 201},
    "limits.min_size ": limits(min_size=0.5),
    "limits: min_size: 100 is not a multiple": limits(min_size=100),
    "limits: max_size: 1000 is not a multiple": limits(max_size=1000),
    "limits: min_size: 2064 is above max_size, 2048": limits(min_size=2064),
    "limits.max_size ": limits(max_size=16_384),
    "limits.max_size  ": limits(max_size=10**30),
    "limits.max_size   ": limits(max_size=True),
    "limits.max_aspect_ratio": limits(max_aspect_ratio=0.5),
    "limits.max_aspect_ratio ": limits(max_aspect_ratio=math.nan),
    "limits.max_aspect_ratio  ": limits(max_aspect_ratio=math.inf),
    "limits.max_prompt_tokens": limits(max_prompt_tokens=0),
    "limits.max_prompt_tokens ": limits(max_prompt_tokens=65_537),
    "default_size: 4096x4096 is outside limits": {"default_size": "4096x4096"},
    "default_size: 1000x1000 is outside limits": {"default_size": "1000x1000"},
    "default_size: 2048x256 is outside limits": {"default_size": "2048x256"},
    "default_size: 1024x1024 is outside limits": {"limits": {"max_size": 512}},
    "default_size   ": {"default_size": "9" * 5000 + "x16"},
    "default_size    ": {"default_size": "1024x1024\n"},
    "presets.FAST.num_inference_steps": preset(num_inference_steps=0, guidance_schedule=[]),
    "presets.FAST.num_inference_steps ": preset(num_inference_steps=101, guidance_schedule=[[5, 101]]),
    "presets.FAST.guidance_schedule.0.1": preset(guidance_schedule=[[5, 10**12]]),
    "presets.FAST.guidance_schedule.0.1 ": preset(guidance_schedule=[[5, 0], [5, 3]]),
    "presets.FAST.guidance_schedule.0.0": preset(guidance_schedule=[[math.inf, 3]]),
    "presets.FAST.guidance_schedule.0.0 ": preset(guidance_schedule=[[0.5, 3]]),
    "presets.FAST.guidance_schedule.1.0": preset(guidance_schedule=[[1, 2], [20.5, 1]]),
    "presets.FAST.guidance_schedule.0": preset(guidance_schedule=[[5]]),
    "presets.FAST.mu ": preset(mu=math.nan),
    "presets.FAST.mu  ": preset(mu=-11),
    "presets.FAST.std ": preset(std=math.inf),
    "presets.FAST.std  ": preset(std=1e-9),
    "presets.FAST.std   ": preset(std=11),
    "presets..*key": preset(""),
    "presets.a b.*key": preset("a b"),
}


@pytest.mark.parametrize("key", FAULTS)
def test_a_fault_names_file_and_key(folder: Path, key: str) -> None:
    with pytest.raises(CheckpointError, match=rf"ideoserve\.json: .*{key.strip()}"):
        ModelConfig.load(declare(folder, FAULTS[key]))


@pytest.mark.parametrize("content", [b"{", b"\xff", b"", b"[" * 100_000])
def test_invalid_json_names_the_file(folder: Path, content: bytes) -> None:
    (folder / "ideoserve.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"ideoserve\.json"):
        ModelConfig.load(folder)


@pytest.mark.parametrize("content", [None, b"[]", b"{", b"\xff", b"[" * 100_000])
def test_no_checkpoint(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "model_index.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model_index\.json: "):
        ModelConfig.load(tmp_path)


@pytest.mark.parametrize("name", ["absent", "x" * 300, "a\0b"])
def test_no_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"no such folder"):
        ModelConfig.load(tmp_path / name)


UNREADABLE: dict[str, Callable[[Path], object]] = {
    "No such file": lambda file: file.symlink_to("absent"),
    "symbolic links": lambda file: file.symlink_to(file),
    "not a regular file": lambda file: file.mkdir(),
    "larger than 64 MiB": lambda file: (file.touch(), os.truncate(file, 65 << 20)),
}


@pytest.mark.parametrize("problem", UNREADABLE)
@pytest.mark.parametrize("name", ["model_index.json", "ideoserve.json"])
def test_a_file_that_cannot_be_read(folder: Path, name: str, problem: str) -> None:
    (folder / name).unlink(missing_ok=True)
    UNREADABLE[problem](folder / name)
    with pytest.raises(CheckpointError, match=rf"{name}: .*{problem}"):
        ModelConfig.load(folder)


@pytest.mark.parametrize("problem", list(UNREADABLE)[:3])
@pytest.mark.parametrize("name", ["a.json", "a.jinja", "a.safetensors"])
def test_the_fingerprint_of_a_file_that_cannot_be_read(folder: Path, name: str, problem: str) -> None:
    UNREADABLE[problem](folder / name)
    with pytest.raises(CheckpointError, match=rf"{name}: .*{problem}"):
        ModelConfig.load(folder)


def test_a_folder_whose_name_is_no_id(folder: Path) -> None:
    named = folder.rename(os.fsdecode(os.fsencode(folder.parent) + b"/\xff"))
    with pytest.raises(CheckpointError, match=r"ideoserve\.json: id: "):
        ModelConfig.load(named)
    assert ModelConfig.load(declare(named, {"id": "demo"})).model_id == "demo"


@pytest.mark.parametrize("given", ["snapshot", "a link to it"])
def test_the_id_of_a_model_from_the_hub_is_its_repository(folder: Path, given: str) -> None:
    """Also for the path of a snapshot in a mounted cache, a folder whose name is a commit."""
    snapshots = folder.parent / "models--owner--name" / "snapshots"
    snapshots.mkdir(parents=True)
    path = folder.rename(snapshots / ("0123456789abcdef" * 3)[:40])
    if given != "snapshot":
        folder.symlink_to(path)
        path = folder
    assert ModelConfig.load(path).model_id == "owner/name"
    assert ModelConfig.load(declare(path, {"id": "declared"})).model_id == "declared"
    assert ModelConfig.load(path, "asked").model_id == "asked"


def test_the_fingerprint_follows_the_weights_and_not_the_place(folder: Path, tmp_path: Path) -> None:
    (folder / "a.safetensors").write_bytes(b"weights")
    before = ModelConfig.load(folder).fingerprint
    assert before == ModelConfig.load(shutil.copytree(folder, tmp_path / "copy")).fingerprint
    (folder / "a.safetensors").write_bytes(b"weighty")
    assert before != ModelConfig.load(folder).fingerprint
