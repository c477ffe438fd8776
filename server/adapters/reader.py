"""Reads declared adapters. A file that has not changed is not read again."""

import hashlib
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from engine.adapters.adapter_file import AdapterError, read_adapter
from engine.config.files import list_files, unreadable
from engine.config.model_config import ModelConfig
from engine.config.part_configs import DiTConfig, read_config
from engine.errors import CheckpointError
from server.adapters.adapter import Adapter, Weights
from server.adapters.declaration import SETTINGS_FILE, SUFFIX, AdapterSettings, Declaration
from server.adapters.hub_folders import HubFolders
from server.hub.repository import SCHEME, Repository
from server.settings.config_error import ConfigError

# A file that was written in this time may be incomplete.
SETTLE_SECONDS = 1.0
FOLDERS = re.compile(r"(?<!\S)/\S*/")

Version = tuple[int, int, int]


class AdapterReader:
    """Reads adapters of one model. Not thread-safe."""

    def __init__(self, model: ModelConfig, ignore: Sequence[str] = ()) -> None:
        """Keys of files that match a pattern of `ignore` are not read. Raises CheckpointError."""
        self._model = model
        self._ignore = ignore
        folders = model.folders
        self._config = read_config(folders.transformer, DiTConfig)
        self._unconditional = read_config(folders.unconditional, DiTConfig) if folders.unconditional else None
        self._hub = HubFolders()
        self._files: dict[Path, tuple[Version, Weights]] = {}

    def read(self, declared: Declaration) -> Adapter:
        """Blocks while a file is read, but not while it is downloaded. Does not raise: the result says why it
        cannot be used."""
        settings = AdapterSettings(**declared.settings)
        try:
            path = self._path(declared)
            if path is None:
                return Adapter(declared.name, settings)
            settings = _settings(path, declared)
            self._check_preset(settings)
            weights = self._weights(_selected(path, declared.file))
            return Adapter(declared.name, settings, weights)
        except (AdapterError, CheckpointError, ConfigError) as error:
            return Adapter(declared.name, settings, error=FOLDERS.sub("", str(error)))

    def _path(self, declared: Declaration) -> Path | None:
        """None while it is downloaded."""
        if declared.error is not None:
            raise CheckpointError(declared.error)
        if not declared.source.startswith(SCHEME):
            return Path(declared.source)
        repository = Repository.parse(declared.source, "source")
        assert repository is not None, "anything else after hf:// raises"
        return self._hub.folder(repository, (declared.file or f"*{SUFFIX}", SETTINGS_FILE))

    def _check_preset(self, settings: AdapterSettings) -> None:
        preset = settings.preset
        if preset and not self._model.is_guided and any(scale != 1 for scale, _ in preset.guidance_schedule):
            raise CheckpointError("preset: guidance_schedule must be 1: the model runs without guidance")

    def _weights(self, path: Path) -> Weights | None:
        """None while the file may be incomplete."""
        try:
            status = path.stat()
            if 0 <= time.time() - status.st_mtime < SETTLE_SECONDS:
                return None
            version = status.st_mtime_ns, status.st_size, status.st_ino
            known = self._files.get(path)
            if known is None or known[0] != version:
                known = self._files[path] = version, self._read(path)
            return known[1]
        except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
            raise unreadable(path, error) from error

    def _read(self, path: Path) -> Weights:
        info = read_adapter(path, self._config, self._ignore, self._unconditional)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Weights(path.absolute(), digest, info)


def _settings(path: Path, declared: Declaration) -> AdapterSettings:
    """Those of the declaration, and what they leave to the folder. Raises CheckpointError."""
    return AdapterSettings.of(path).model_copy(update=dict(declared.settings))


def _selected(path: Path, name: str | None) -> Path:
    """The safetensors file at `path` or in this folder. Raises CheckpointError."""
    if name is not None:
        return path / name
    if not os.path.isdir(path):
        return path
    files = list_files(path, SUFFIX)
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise CheckpointError(f"{path}: `file` must name one of its safetensors files: {names}")
    return files[0]
