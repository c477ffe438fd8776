"""The safetensors files of one folder, read tensor by tensor."""

import json
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.errors import CheckpointError

# A mapped file's pages count as resident until it is closed: reopen after this many bytes.
_REOPEN_BYTES = 64 << 20


class WeightFiles:
    """Keys of a single file or a sharded index; `in`, `read`, and a check that all were used."""

    def __init__(self, folder: Path, ignore: tuple[str, ...] = ()) -> None:
        """Raises CheckpointError if there is no weight file, or an index names one that is missing.

        Keys that start with one of `ignore` are neither read nor missed.
        """
        self.folder = folder
        self._ignored = ignore
        self._files = _locate(folder)
        self._open_file: Path | None = None
        self._mapped = 0

    def __contains__(self, key: str) -> bool:
        return key in self._files

    def read(self, key: str) -> Tensor:
        """The tensor, still lying in the mapped file: copy it before the next read."""
        if key not in self._files:
            raise CheckpointError(f"{self.folder}: {key}: missing")
        file = self._files[key]
        if file != self._open_file or self._mapped > _REOPEN_BYTES:
            self._handle = safe_open(file, framework="pt")
            self._open_file, self._mapped = file, 0
        try:
            tensor: Tensor = self._handle.get_tensor(key)  # type: ignore[no-untyped-call]
        except SafetensorError as error:
            raise self.error(key, str(error)) from error
        self._mapped += tensor.nbytes
        return tensor

    def ignore(self, key: str) -> None:
        """Count `key` as used."""
        self._ignored = (*self._ignored, key)

    def check_all_used(self, used: Iterable[str]) -> None:
        """Raise CheckpointError on the first key that is neither in `used` nor ignored."""
        for key in sorted(self._files.keys() - set(used)):
            if not key.startswith(self._ignored):
                raise self.error(key, "unexpected")

    def error(self, key: str, problem: str) -> CheckpointError:
        return CheckpointError(f"{self._files.get(key, self.folder)}: {key}: {problem}")


def _locate(folder: Path) -> dict[str, Path]:
    """Which file holds each key."""
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if indexes:
        return _locate_shards(indexes[0])
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder}: no *.safetensors file")
    return {key: file for file in files for key in _keys(file)}


def _locate_shards(index: Path) -> dict[str, Path]:
    try:
        weight_map: dict[str, str] = json.loads(index.read_text("utf-8"))["weight_map"]
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{index}: not a weight index: {error!r}") from error
    held = {name: _keys(index.parent / name) for name in sorted(set(weight_map.values()))}
    for key, name in weight_map.items():
        if key not in held[name]:
            raise CheckpointError(f"{index.parent / name}: {key}: missing, though {index.name} lists it")
    return {key: index.parent / name for key, name in weight_map.items()}


def _keys(file: Path) -> set[str]:
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file")
    try:
        with safe_open(file, framework="pt") as handle:
            return set(handle.keys())
    except SafetensorError as error:
        raise CheckpointError(f"{file}: {error}") from error
