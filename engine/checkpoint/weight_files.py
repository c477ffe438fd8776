"""The safetensors files of one folder, read tensor by tensor."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.config.files import read_json, require_file
from engine.errors import CheckpointError

# A mapped file's pages count as resident until it is closed: copy in pieces, reopen after this many bytes.
_PIECE_BYTES = 64 << 20
# The names that headers have for dtypes. Wide ones are read into what the model computes in.
_WIDE = ("BF16", "F16", "F32", "F64")
_STORED = {torch.uint8: ("U8",), torch.float8_e4m3fn: ("F8_E4M3",)}


class WeightFiles:
    """The tensors of a single file or of a sharded index, by key."""

    def __init__(self, folder: Path, ignore: tuple[str, ...] = ()) -> None:
        """Raises CheckpointError if there is no sound weight file, or an index and its shards differ.

        Keys that start with one of `ignore` are neither read nor missed.
        """
        self.folder = folder
        self._ignored = ignore
        self._home, self._files = _locate(folder)
        self._open_file: Path | None = None
        self._mapped = 0

    def __contains__(self, key: str) -> bool:
        return key in self._files

    def check(self, key: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Raises CheckpointError if the header's shape or dtype does not fit; reads no data.

        A vector may be stored as a column, as bitsandbytes does.
        """
        header = self._open(key).get_slice(key)
        stored = tuple(header.get_shape())
        if stored != shape and stored != (*shape, 1):
            raise self.error(key, f"shape {stored}, expected {shape}")
        allowed = _STORED.get(dtype, _WIDE)
        if header.get_dtype() not in allowed:
            raise self.error(key, f"dtype {header.get_dtype()}, expected {' or '.join(allowed)}")

    def read(self, key: str) -> Tensor:
        """A small tensor, in memory of its own. Raises CheckpointError if it is not finite."""
        stored: Tensor = self._open(key).get_tensor(key)
        self._check_finite(key, stored)
        return stored.clone()

    def copy(self, key: str, target: Tensor) -> None:
        """Fill `target`, which has passed `check`. Raises CheckpointError if a value is not finite in it."""
        start = 0
        for piece in self._pieces(key, rows=len(target), row_bytes=max(1, target[:1].nbytes)):
            rows = target[start : start + len(piece)]
            rows.copy_(piece.view(rows.shape))
            self._check_finite(key, rows)
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

    def _check_finite(self, key: str, values: Tensor) -> None:
        if not _is_finite(values):
            raise self.error(key, "NaN or infinity")

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


def _is_finite(values: Tensor) -> bool:
    """By the extremes, which NaN spreads to: a fifteenth of what `isfinite` takes."""
    if values.dtype == torch.float8_e4m3fn:  # NaN is 0x7f and 0xff; there is no infinity
        return bool(values.view(torch.int8).amax() < 0x7F and values.view(torch.uint8).amax() < 0xFF)
    if not values.is_floating_point() or not values.numel():
        return True
    return all(math.isfinite(extreme) for extreme in values.aminmax())


def _open(file: Path) -> Any:
    require_file(file)
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
    """Each key's shard, where index and shards say the same."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map: must be an object of keys and their files")
    held = {name: _keys(index.parent / name) for name in _shards(index, weight_map)}
    for key, name in weight_map.items():
        if key not in held[name]:
            raise CheckpointError(f"{index.parent / name}: {key}: missing, though {index.name} lists it")
    for name, keys in held.items():
        for key in sorted(keys):
            if weight_map.get(key) != name:
                listed = weight_map.get(key, "nowhere")
                raise CheckpointError(f"{index}: weight_map: {key}: is in {name}, listed {listed}")
    return {key: index.parent / name for key, name in weight_map.items()}


def _shards(index: Path, weight_map: dict[str, Any]) -> list[str]:
    """Names of files in the index's own folder. Raises CheckpointError on another."""
    for key, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index}: weight_map: {key}: {name!r} is no *.safetensors file beside it")
    return sorted(set(weight_map.values()))


def _keys(file: Path) -> set[str]:
    return set(_open(file).keys())
