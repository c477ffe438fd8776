"""The safetensors files of one folder, read tensor by tensor."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.errors import CheckpointError

# A mapped file's pages count as resident until it is closed: copy in pieces, reopen after this many bytes.
_PIECE_BYTES = 64 << 20
# Read into whatever the model computes in; every other dtype is kept as it is.
_WIDE_DTYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16}


class WeightFiles:
    """Keys of a single file or a sharded index; `in`, `read`, `copy`, and a check that all were used."""

    def __init__(self, folder: Path, ignore: tuple[str, ...] = ()) -> None:
        """Raises CheckpointError if there is no weight file, or an index names one that is missing.

        Keys that start with one of `ignore` are neither read nor missed.
        """
        self._ignored = ignore
        self._home, self._files = _locate(folder)
        self._open_file: Path | None = None
        self._mapped = 0

    def __contains__(self, key: str) -> bool:
        return key in self._files

    def read(self, key: str) -> Tensor:
        """A small tensor, in memory of its own."""
        tensor: Tensor = self._open(key).get_tensor(key)
        return tensor.clone()

    def copy(self, key: str, target: Tensor) -> None:
        """Fill `target`; raises CheckpointError if the stored shape or dtype does not fit.

        A vector may be stored as a column, as bitsandbytes does.
        """
        shape = tuple(self._open(key).get_slice(key).get_shape())
        if shape != target.shape and shape != (*target.shape, 1):
            raise self.error(key, f"shape {shape}, expected {tuple(target.shape)}")
        start = 0
        for piece in self._pieces(key, rows=shape[0], row_bytes=max(1, target[:1].nbytes)):
            if piece.dtype != target.dtype and not {piece.dtype, target.dtype} <= _WIDE_DTYPES:
                raise self.error(key, f"dtype {piece.dtype}, expected {target.dtype}")
            target[start : start + len(piece)].copy_(piece.view(-1, *target.shape[1:]))
            start += len(piece)

    def ignore(self, key: str) -> None:
        """Count `key` as used."""
        self._ignored = (*self._ignored, key)

    def check_all_used(self, used: Iterable[str]) -> None:
        """Raise CheckpointError on the first key that is neither in `used` nor ignored."""
        for key in sorted(self._files.keys() - set(used)):
            if not key.startswith(self._ignored):
                raise self.error(key, "unexpected")

    def error(self, key: str, problem: str) -> CheckpointError:
        return CheckpointError(f"{self._files.get(key, self._home)}: {key}: {problem}")

    def _pieces(self, key: str, rows: int, row_bytes: int) -> Iterator[Tensor]:
        """The tensor's rows in order, still lying in the mapped file."""
        step = max(1, _PIECE_BYTES // row_bytes)
        for start in range(0, rows, step):
            piece: Tensor = self._open(key).get_slice(key)[start : start + step]
            self._mapped += piece.nbytes
            yield piece

    def _open(self, key: str) -> Any:
        """The handle of the key's file."""
        if key not in self._files:
            raise self.error(key, "missing")
        file = self._files[key]
        if file != self._open_file or self._mapped > _PIECE_BYTES:
            self._handle = _open(file)
            self._open_file, self._mapped = file, 0
        return self._handle


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: {error}") from error


def _locate(folder: Path) -> tuple[Path, dict[str, Path]]:
    """The one file or the index of several, and which file holds each key."""
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if len(indexes) > 1:
        raise CheckpointError(f"{folder}: two indexes: {indexes[0].name} and {indexes[1].name}")
    if indexes:
        return indexes[0], _locate_shards(indexes[0])
    files = sorted(folder.glob("*.safetensors"))
    if len(files) > 1:
        raise CheckpointError(f"{folder}: {files[0].name} and {files[1].name}, but no index of them")
    if not files:
        raise CheckpointError(f"{folder}: no *.safetensors file")
    return files[0], dict.fromkeys(_keys(files[0]), files[0])


def _locate_shards(index: Path) -> dict[str, Path]:
    try:
        weight_map: dict[str, str] = dict(json.loads(index.read_text("utf-8"))["weight_map"])
        names = sorted(set(weight_map.values()))
        held = {name: _keys(index.parent / name) for name in names}
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{index}: weight_map: not an index of weights: {error!r}") from error
    for key, name in weight_map.items():
        if key not in held[name]:
            raise CheckpointError(f"{index.parent / name}: {key}: missing, though {index.name} lists it")
    return {key: index.parent / name for key, name in weight_map.items()}


def _keys(file: Path) -> set[str]:
    return set(_open(file).keys())
