"""`python -m server`: settings, engine, HTTP."""

import os
import sys
from pathlib import Path

from engine.client.engine_client import EngineClient
from engine.config.model_config import ModelConfig
from engine.config.options import EngineOptions
from engine.errors import CheckpointError
from server.app import create_app, run
from server.settings.config_error import ConfigError
from server.settings.settings import Settings, read_settings

UNUSABLE = 2


def main(argv: list[str]) -> int:
    """The exit code."""
    settings = read_settings(argv)
    try:
        return run(create_app(settings, _engine(settings)))
    except (CheckpointError, ConfigError) as error:
        print(f"ideoserve: {error}", file=sys.stderr)
        return UNUSABLE


def _engine(settings: Settings) -> EngineClient:
    options = EngineOptions(
        devices=settings.device_list,
        uncond_device=settings.uncond_device,
        dtype=settings.dtype,
        compile=settings.compile,
        cuda_graphs=settings.cuda_graphs,
        max_batch_size=settings.max_batch_size,
        max_running=settings.max_running,
    )
    config = ModelConfig.load(_checkpoint(settings.model), settings.model_name)
    return EngineClient(config, options)


def _checkpoint(model: str) -> Path:
    """A local folder as it is, without a look at the network; a repository id through the hub."""
    folder = Path(model)
    # `os.path` says no where `Path.exists` raises: a name too long, a chain of links without an end.
    if os.path.exists(folder) or os.path.exists(folder.parent) or model.count("/") != 1:
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model))
    except Exception as error:  # the hub's client has many, of several libraries
        raise CheckpointError(
            f"{model}: no such folder, and not from the hub: {type(error).__name__}"
        ) from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
