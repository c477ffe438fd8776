"""Writes adapters of the demo model for servers."""

import json
import os
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from engine.config.part_configs import DiTConfig, read_config
from tests.engine.adapters.files import Tensors, peft
from tests.server.fake_engine import DEMO

DIT = read_config(DEMO / "transformer", DiTConfig)
LONG_AGO = (1_700_000_000, 1_700_000_000)
FAST = {"num_inference_steps": 4, "guidance_schedule": [[1.0, 4]], "mu": 0.0, "std": 1.0}
SLOW = {"num_inference_steps": 3, "guidance_schedule": [[2.0, 3]], "mu": 0.5, "std": 1.5}


def write_adapter(file: Path, seed: int = 0, rank: int = 2, **metadata: str) -> Path:
    """Replace the file atomically by one that was written long ago."""
    return write_tensors(file, peft(DIT, rank, seed), metadata)


def write_tensors(file: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    """The same with these tensors."""
    file.parent.mkdir(exist_ok=True)
    fresh = file.with_name(f".{file.name}")
    save_file(tensors, fresh, metadata)
    return _place(fresh, file)


def write_broken(file: Path, content: bytes = b"no header", size: int = 0) -> Path:
    """A file of at least `size` bytes, with a hole after the content."""
    fresh = file.with_name(f".{file.name}")
    fresh.write_bytes(content)
    os.truncate(fresh, max(size, len(content)))
    return _place(fresh, file)


def write_settings(folder: Path, **settings: Any) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "ideoserve.json").write_text(json.dumps(settings))


def write_list(file: Path, *entries: dict[str, Any]) -> None:
    """Replace the adapters file atomically."""
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps({"adapters": entries}))
    os.replace(fresh, file)


def _place(fresh: Path, file: Path) -> Path:
    os.utime(fresh, LONG_AGO)
    os.replace(fresh, file)
    return file
