"""The `config.json` of each part of a checkpoint. Every problem is a CheckpointError naming file and key."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from engine.errors import CheckpointError
from engine.models.dit import DiTConfig
from engine.models.vae import VAEConfig

Config = TypeVar("Config", DiTConfig, VAEConfig)
Module = TypeVar("Module", bound=nn.Module)


def read_config(folder: Path, kind: type[Config]) -> Config:
    """The folder's `config.json`; keys it lacks are the published model's, keys unknown are ignored."""
    file = folder / "config.json"
    try:
        config = TypeAdapter(kind).validate_python(read_json(file))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        raise CheckpointError(f"{file}: {key}: {problem['msg']}") from error
    for key, value in asdict(config).items():
        sizes = value if isinstance(value, tuple) else (value,)
        if not sizes or any(size <= 0 for size in sizes if type(size) is int):
            raise CheckpointError(f"{file}: {key}: must be positive, not {value}")
    return config


def read_json(file: Path) -> dict[str, Any]:
    """Raises CheckpointError unless the file holds an object."""
    try:
        value = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: an object is needed")
    return value


def build(module: Callable[[Any], Module], config: Any, file: Path) -> Module:
    """`module(config)` on `meta`; sizes that make no module are the file's fault."""
    try:
        with torch.device("meta"):
            return module(config)
    except Exception as error:  # torch and pydantic raise many kinds
        raise CheckpointError(f"{file}: {type(error).__name__}: {error}") from error
