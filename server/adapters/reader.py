"""Reads declared adapters. A file that has not changed is not read again."""

import math
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from engine.adapters.adapter_file import AdapterError, both_configs, check_adapter
from engine.adapters.adapter_header import read_header
from engine.config.files import read_as, unreadable
from engine.config.model_config import ModelConfig
from engine.config.part_configs import DiTConfig, read_config
from engine.errors import CheckpointError
from server.adapters.adapter import Adapter, Weights
from server.adapters.declaration import SETTINGS_FILE, SUFFIX, AdapterSettings, Declaration, weights_in
from server.adapters.hub_folders import HubFolders
from server.adapters.offer import listed
from server.hub.repository import SCHEME, HubUnavailableError, Repository
from server.settings.config_error import ConfigError

# A file that was written in this time may be incomplete.
SETTLE_SECONDS = 1.0
FOLDERS = re.compile(r"(?<!\S)/\S*/")

Version = tuple[int, int, int, int]


class AdapterReader:
    """Reads adapters of one model. Not thread-safe."""

    def __init__(self, model: ModelConfig, ignore: Sequence[str] = ()) -> None:
        """Keys of files that match a pattern of `ignore` are not read. Raises CheckpointError."""
        self._model = model
        self._ignore = ignore
        folders = model.folders
        unconditional = read_config(folders.unconditional, DiTConfig) if folders.unconditional else None
        self._configs = both_configs(read_config(folders.transformer, DiTConfig), unconditional)
        self._hub = HubFolders()
        # With the weights, or why the file cannot be used.
        self._files: dict[Path, tuple[Version, Weights | str]] = {}

    def read(self, declared: Declaration, until: float = math.inf) -> Adapter:
        """Blocks while a file is read, but not while it is downloaded. Does not raise: the result says why it
        cannot be used. From `until` (time.monotonic()) on, new files are left for the next call."""
        settings = AdapterSettings(**declared.settings)
        try:
            path = self._path(declared)
            if path is None:
                return Adapter(declared.name, settings)
            settings = _settings(path, declared)
            self._check_preset(settings)
            weights = self._weights(_selected(path, declared.file), declared.root, until)
            return Adapter(declared.name, settings, weights)
        except (AdapterError, CheckpointError, ConfigError) as error:
            is_retried = isinstance(error, HubUnavailableError)
            return Adapter(declared.name, settings, error=_message(error), is_retried=is_retried)

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

    def _weights(self, path: Path, root: Path | None, until: float) -> Weights | None:
        """None while the file may be incomplete."""
        status = _status(path)
        if 0 <= time.time() - status.st_mtime < SETTLE_SECONDS:
            return None
        version = status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
        known = self._files.get(path)
        if known is None or known[0] != version:
            if time.monotonic() >= until:
                return None
            known = self._files[path] = version, self._read(path, root)
        if isinstance(known[1], str):
            raise AdapterError(known[1])
        return known[1]

    def _read(self, path: Path, root: Path | None) -> Weights | str:
        from engine.adapters.adapter_digest import digest  # importing numpy takes a tenth of a second

        try:
            _check_inside(path, root)
            header = read_header(path)
            file = check_adapter(header, self._configs, self._ignore)
            return Weights(path.absolute(), digest(header, file), file.info)
        except (AdapterError, CheckpointError) as error:
            return str(error)


def _message(error: Exception) -> str:
    """Without folders, and with `?` for what is not UTF-8 in names of files."""
    return FOLDERS.sub("", str(error)).encode("utf-8", "replace").decode()


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        raise unreadable(path, error) from error


def _check_inside(path: Path, root: Path | None) -> None:
    """Raises CheckpointError if the path leads out of the folder."""
    if root is not None and not path.resolve().is_relative_to(root.resolve()):
        raise CheckpointError(f"{path}: a link out of the folder; an adapters file may name such files")


def _settings(path: Path, declared: Declaration) -> AdapterSettings:
    """Those of the declaration, and what they leave to the folder. Raises CheckpointError."""
    file = path / SETTINGS_FILE
    if not os.path.lexists(file):
        return AdapterSettings(**declared.settings)
    _check_inside(file, declared.root)
    return read_as(AdapterSettings, file).model_copy(update=dict(declared.settings))


def _selected(path: Path, name: str | None) -> Path:
    """The safetensors file at `path` or in this folder. Raises CheckpointError."""
    if name is not None:
        return path / name
    if not os.path.isdir(path):
        return path
    files = weights_in(path)
    if not files:
        raise CheckpointError(f"{path}: no safetensors file")
    if len(files) > 1:
        hint = "keep one, or name one as `file` in an adapters file"
        names = listed([file.name for file in files])
        raise CheckpointError(f"{path}: {len(files)} safetensors files, {names}: {hint}")
    return files[0]
