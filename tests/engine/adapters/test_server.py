"""Adapters in a real server whose conditional transformer runs both passes, compared with diffusers."""

import copy
import io
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from engine.adapters.store import AdapterStore
from engine.config.model_config import ModelConfig
from engine.config.options import EngineOptions
from engine.config.part_folders import PartFolders, loaded_folders
from engine.errors import OptionError
from engine.runner.model_runner import ModelRunner
from tests.engine import reference
from tests.engine.adapters.files import Tensors, comfyui, peft, write
from tests.engine.checkpoints import Checkpoint
from tests.engine.reference import Job
from tests.server.process import ServerProcess, until
from tests.server.routes.test_errors import check

JOB = Job('a poster that says "HELLO"', 96, 64, guidance=(7.0, 1.0, 3.0))
DECLARED = {
    "limits": {"min_size": 64, "max_size": 128, "multiple_of": 16},
    "default_size": "64x64",
    "presets": {
        "THREE": {
            "num_inference_steps": 3,
            "guidance_schedule": [[scale, 1] for scale in JOB.guidance],
            "mu": JOB.mu,
            "std": JOB.std,
        }
    },
}
IGNORED = "x.dora_scale"
MEMORY_GB = 0.001
WIDE = 200  # the rank of an adapter that takes more
LONG_AGO = (1_700_000_000, 1_700_000_000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, runner: ModelRunner) -> Path:
    """Adapters, and beside them the one of the unconditional pass. They have a key that must be ignored."""
    folder, config = tmp_path_factory.mktemp("adapters"), runner.pipeline.conditional.config
    write_settled(folder / "style.safetensors", halved(peft(config, seed=1)))
    write_settled(folder / "wide.safetensors", peft(config, rank=WIDE))
    write_settled(folder / "huge.safetensors", {key: 1e30 * each for key, each in peft(config).items()})
    write_settled(folder.with_name("imitation.safetensors"), halved(comfyui(config)))
    return folder


def write_settled(file: Path, tensors: Tensors) -> None:
    """Replace the file by one that was written long ago."""
    written = write(file.with_suffix(".new"), tensors | {IGNORED: torch.zeros(1)})
    os.utime(written, LONG_AGO)
    os.replace(written, file)


def halved(tensors: Tensors) -> Tensors:
    return {key: tensor / 2 for key, tensor in tensors.items()}


@pytest.fixture(scope="module")
def server(checkpoint: Checkpoint, folder: Path) -> Iterator[ServerProcess]:
    model = folder.with_name("model")
    shutil.copytree(checkpoint.path, model)
    (model / "ideoserve.json").write_text(json.dumps(DECLARED))
    flags = {
        "model": model,
        "adapters": folder,
        "uncond-adapter": folder.with_name("imitation.safetensors"),
        "adapter-ignore": "*.dora_scale,*.none",
        "adapter-memory-gb": MEMORY_GB,
        "dtype": "float32",
    }
    process = ServerProcess(*(f"--{name}={value}" for name, value in flags.items()), module="server")
    until(lambda: process.http.get("/readyz").status_code == 200)
    yield process
    process.close()


def body(*adapters: dict[str, Any]) -> dict[str, Any]:
    size = f"{JOB.width}x{JOB.height}"
    return {"prompt": JOB.prompt, "size": size, "seed": JOB.seed, "adapters": list(adapters)}


def drawn(server: ServerProcess, *adapters: dict[str, Any]) -> Any:
    response = server.create({"Accept": "image/png"}, **body(*adapters))
    assert response.status_code == 200, response.text
    return np.asarray(Image.open(io.BytesIO(response.content)), np.int16)


def pipeline(checkpoint: Checkpoint, folder: Path) -> Any:
    """As diffusers runs it: a conditional transformer with the style, a copy of it that imitates."""
    styled = loaded(checkpoint, folder / "style.safetensors")
    styled.unconditional_transformer = loaded(
        checkpoint, folder.with_name("imitation.safetensors")
    ).transformer
    return styled


def loaded(checkpoint: Checkpoint, file: Path) -> Any:
    """The pipeline with an adapter on its conditional transformer. diffusers ignores DoRA scales."""
    made = copy.copy(checkpoint.referee)
    made.transformer = copy.deepcopy(made.transformer)
    made.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=file.stem)
    return made


def test_images_are_those_of_diffusers(server: ServerProcess, checkpoint: Checkpoint, folder: Path) -> None:
    """With an adapter at a scale, and without."""
    referee = pipeline(checkpoint, folder)
    referee.transformer.set_adapters(["style"], [0.6])
    expected = reference.decode(referee, reference.sample(referee, JOB), JOB.grid)
    assert np.abs(drawn(server, {"name": "style", "scale": 0.6}) - expected).max() <= 2
    referee.transformer.disable_lora()
    plain = reference.decode(referee, reference.sample(referee, JOB), JOB.grid)
    assert np.abs(drawn(server) - plain).max() <= 2
    assert np.abs(plain.astype(np.int16) - expected).max() > 20


def test_the_fingerprint_is_not_that_of_the_checkpoint_alone(server: ServerProcess, folder: Path) -> None:
    """So that a fleet does not mix workers with and without the adapter of the unconditional pass."""
    model, imitation = folder.with_name("model"), folder.with_name("imitation.safetensors")
    served = server.http.get("/v1/models").json()["data"][0]["fingerprint"]
    assert served == ModelConfig.load(model, uncond_adapter=imitation).fingerprint
    assert served != ModelConfig.load(model).fingerprint


def test_estimates_count_adapters(server: ServerProcess) -> None:
    """As admission does."""

    def seconds(*adapters: dict[str, Any]) -> float:
        # Many steps, so that the difference is not lost in rounding.
        body_ = {"prompt": "x", "size": "128x128", "n": 4, "num_inference_steps": 100, "adapters": adapters}
        response = server.http.post("/v1/images/estimate", json=body_)
        return float(response.json()["device_seconds"])

    assert seconds({"name": "style"}) > seconds()


def test_errors_of_the_engine_name_the_adapter(
    server: ServerProcess, folder: Path, runner: ModelRunner
) -> None:
    """A file that was replaced between admission and loading; values that overflow; too little memory."""

    def error(name: str, status: int, code: str) -> str:
        response = server.create(**body({"name": "style"}, {"name": name}))
        return str(check(response, status, code, "adapters")["message"])

    assert "infinity with the adapters `style`, `huge`" in error("huge", 500, "adapter_failed")
    too_large = error("wide", 400, "adapters_too_large")
    assert "`style`, `wide`" in too_large
    assert f"at most {int(MEMORY_GB * 1e9)} (--adapter-memory-gb)" in too_large
    until(lambda: "the file of the adapter `replaced" in replace_and_use(server, folder, runner).lower())
    assert drawn(server, {"name": "style"}).shape == (JOB.height, JOB.width, 3)


def replace_and_use(server: ServerProcess, folder: Path, runner: ModelRunner) -> str:
    """Overwrite an adapter that is listed, and use it. The server reads the new file after a second; if it
    was quicker than this, the request succeeds."""
    name = f"replaced{len(list(folder.iterdir()))}"
    file, config = folder / f"{name}.safetensors", runner.pipeline.conditional.config
    write_settled(file, peft(config, rank=1))
    until(lambda: server.http.get(f"/v1/models/model:{name}").status_code == 200)
    write(file, peft(config, rank=2) | {IGNORED: torch.zeros(1)})
    response = server.create(**body({"name": name}))
    assert response.status_code in (200, 503)
    return (
        response.text
        if response.status_code == 200
        else str(check(response, 503, "adapter_unavailable", "adapters")["message"])
    )


def test_a_broken_adapter_of_the_unconditional_pass_names_the_option(
    runner: ModelRunner, folder: Path
) -> None:
    store = AdapterStore.of(runner.pipeline, EngineOptions(adapter_memory_gb=0.01))
    file = folder.with_name("imitation.safetensors")
    with pytest.raises(OptionError, match=r"--uncond-adapter: .*imitation\.safetensors: x\.dora_scale: DoRA"):
        store.load(str(file))


def test_one_transformer_for_both_passes_has_one_device(checkpoint: Checkpoint) -> None:
    options = EngineOptions(uncond_adapter="imitation.safetensors")
    folders = PartFolders.of(checkpoint.path)
    assert loaded_folders(folders, options).unconditional is None
    with pytest.raises(OptionError, match="--uncond-device"):
        loaded_folders(folders, replace(options, uncond_device="cpu"))
