"""`python -m server`: reads the settings and serves a checkpoint."""

import os
import socket
import sys
from pathlib import Path

from engine.client.engine_client import EngineClient
from engine.config.model_config import ModelConfig
from engine.config.options import EngineOptions
from engine.errors import CheckpointError
from server.app import create_app, run
from server.settings.config_error import ConfigError
from server.settings.settings import Settings, read_settings
from server.transport.server import listen
from server.transport.startup import answering_probes

UNUSABLE = 2


def main(argv: list[str]) -> int:
    """Return the exit code."""
    settings = read_settings(argv)
    try:
        sockets = listen(settings)
        return run(create_app(settings, _engine(settings, sockets)), sockets)
    except (CheckpointError, ConfigError) as error:
        print(f"ideoserve: {error}", file=sys.stderr)
        return UNUSABLE


def _engine(settings: Settings, sockets: list[socket.socket]) -> EngineClient:
    options = EngineOptions(
        devices=settings.device_list,
        uncond_device=settings.uncond_device,
        dtype=settings.dtype,
        compile=settings.compile,
        cuda_graphs=settings.cuda_graphs,
        max_batch_size=settings.max_batch_size,
        max_running=settings.max_running,
    )
    config = ModelConfig.load(_checkpoint(settings, sockets), settings.model_name)
    return EngineClient(config, options)


def _checkpoint(settings: Settings, sockets: list[socket.socket]) -> Path:
    """The folder itself, without network access, or the local copy of a Hugging Face repository."""
    model = settings.model
    folder = Path(model)
    # `Path.exists` raises on names that are too long and on circular links; `os.path.exists` is False.
    if os.path.exists(folder) or os.path.exists(folder.parent) or model.count("/") != 1:
        return folder
    with answering_probes(settings, sockets):
        return _download(model)


def _download(model: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model))
    except Exception as error:  # huggingface_hub raises errors of several libraries
        raise CheckpointError(
            f"{model}: no such folder, and the download from the hub failed: {type(error).__name__}"
        ) from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
