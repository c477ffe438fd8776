"""Where the adapters of a server are declared."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from engine.config.model_config import ModelConfig
from engine.errors import CheckpointError
from server.adapters.adapter import Adapter
from server.adapters.declaration import declarations
from server.adapters.reader import AdapterReader
from server.settings.config_error import ConfigError

# After this time, new files are left for the next call, so that a start with many large files ends.
READ_SECONDS = 5.0


class Source:
    """A folder or an adapters file."""

    def __init__(self, path: Path, model: ModelConfig, ignore: Sequence[str] = ()) -> None:
        """Keys of files that match a pattern of `ignore` are not read. Raises CheckpointError, or ConfigError
        if `path` cannot be read."""
        self._path = path
        self._reader = AdapterReader(model, ignore)
        try:
            declarations(path)
        except CheckpointError as error:
            raise ConfigError(f"--adapters: {error}") from None

    def read(self, before: Mapping[str, Adapter]) -> dict[str, Adapter]:
        """All adapters, with the file of `before` where a new one is downloaded, written or not read yet.
        Raises CheckpointError."""
        until = time.monotonic() + READ_SECONDS
        read = {declared.name: self._reader.read(declared, until) for declared in declarations(self._path)}
        for name, adapter in read.items():
            if adapter.status == "loading" and name in before:
                read[name] = replace(adapter, weights=before[name].weights)
        return read
