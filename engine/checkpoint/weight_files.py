"""Reads the safetensors files of one folder, tensor by tensor."""

import math
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.checkpoint.tensor_reader import TensorReader
from engine.config.files import list_files, read_json, require_file
from engine.config.key_names import is_weight, published_names
from engine.config.tensor_headers import TensorHeader, read_headers
from engine.errors import CheckpointError

# dtypes as headers name them. Any of the wide ones is cast to the compute dtype.
_WIDE = ("BF16", "F16", "F32", "F64")
_STORED = {torch.uint8: ("U8",), torch.float8_e4m3fn: ("F8_E4M3",)}
# In the keys of LoRA, LoKr and LoHa adapters.
_ADAPTER_KEY = re.compile(r"lora|lokr_|hada_")


class WeightFiles:
    """The tensors of a single file, or of the shards that an index lists, by their published keys."""

    def __init__(self, folder: Path, ignore: tuple[str, ...] = ()) -> None:
        """Read the headers. Keys that start with one of `ignore` are optional and never read.

        Raises CheckpointError if a file is missing or malformed, or if an index and its shards differ.
        """
        self.folder = folder
        self._ignored = ignore
        self._home, files = _locate(folder)
        self._stored = published_names(files)
        self._files = {key: files[stored] for key, stored in self._stored.items()}
        self._reader = TensorReader()

    def __contains__(self, key: str) -> bool:
        return key in self._files

    def check(self, key: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Compare the header with a shape and dtype, without reading data. Raises CheckpointError.

        A vector may be stored as a column, as bitsandbytes does.
        """
        header = self._header(key)
        if header.shape not in (shape, (*shape, 1)):
            raise self.error(key, f"shape {header.shape}, expected {shape}")
        allowed = _STORED.get(dtype, _WIDE)
        if header.dtype not in allowed:
            raise self.error(key, f"dtype {header.dtype}, expected {' or '.join(allowed)}")

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape in the header. Raises CheckpointError if there is no such key."""
        return self._header(key).shape

    def is_scalar(self, key: str) -> bool:
        """Whether the tensor holds a single value."""
        return math.prod(self.shape(key)) == 1

    def read(self, key: str) -> Tensor:
        """Return a copy of a small tensor. Raises CheckpointError if it is not finite."""
        stored = self._reader.read(self._header(key))
        self._check_finite(key, stored)
        return stored

    def copy(self, key: str, target: Tensor) -> None:
        """Copy a tensor into `target`, whose shape `check` has accepted. Several threads may copy at once.

        Raises CheckpointError if a value is not finite in the dtype of `target`.
        """
        for piece in self._reader.fill(self._header(key), target):
            self._check_finite(key, piece)

    def ignore(self, key: str) -> None:
        """Treat `key` as used."""
        self._ignored = (*self._ignored, key)

    def check_all_used(self, used: Iterable[str]) -> None:
        """Raises CheckpointError for the first key that is neither in `used` nor ignored."""
        for key in sorted(self._files.keys() - set(used)):
            if is_weight(key) and not key.startswith(self._ignored):
                raise self.error(key, "unexpected")

    def error(self, key: str, problem: str) -> CheckpointError:
        """An error that names the file and the key."""
        return CheckpointError(f"{self._files.get(key, self._home)}: {self._stored.get(key, key)}: {problem}")

    def missing(self, key: str, *alternatives: str) -> CheckpointError:
        """The error for a key that is not stored; it names the prefix under which a key is, if any."""
        wanted = (key, *alternatives)
        for stored in sorted(self._files):
            if found := next((each for each in wanted if stored.endswith(f".{each}")), None):
                prefix = stored.removesuffix(found)
                return self.error(
                    found, f"missing, but there is {stored}: remove the prefix {prefix!r} from every key"
                )
        return self.error(" or ".join(wanted), "missing")

    def _check_finite(self, key: str, values: Tensor) -> None:
        if not _is_finite(values):
            raise self.error(key, "NaN or infinity")

    @cached_property
    def _headers(self) -> dict[Path, dict[str, TensorHeader]]:
        return {file: read_headers(file) for file in set(self._files.values())}

    def _header(self, key: str) -> TensorHeader:
        if key not in self._files:
            raise self.missing(key)
        return self._headers[self._files[key]][self._stored[key]]


def _is_finite(values: Tensor) -> bool:
    """Checks the minimum and maximum, which NaN propagates to: 15 times as fast as `isfinite`."""
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
    """The index of several files, or the only file; and the file of each key."""
    indexes = list_files(folder, ".safetensors.index.json")
    if len(indexes) > 1:
        raise CheckpointError(f"{folder}: two indexes: {indexes[0].name} and {indexes[1].name}")
    if indexes:
        return indexes[0], _locate_shards(indexes[0])
    held = {file: _keys(file) for file in list_files(folder, ".safetensors")}
    if not held:
        raise CheckpointError(f"{folder}: no *.safetensors file")
    for file, keys in held.items():
        _require_weights(file, keys)
    first, *others = held
    if others:
        raise CheckpointError(f"{folder}: {first.name} and {others[0].name}, but no index of them: keep one")
    return first, dict.fromkeys(held[first], first)


def _require_weights(file: Path, keys: set[str]) -> None:
    """Raises CheckpointError if `file` holds an adapter."""
    for key in sorted(filter(_ADAPTER_KEY.search, keys)):
        raise CheckpointError(
            f"{file}: {key}: this is a LoRA adapter, which the server cannot apply: merge it into the "
            "weights or remove the file"
        )


def _locate_shards(index: Path) -> dict[str, Path]:
    """The shard of each key. Raises CheckpointError if the index and the shards differ."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map: must be an object that maps keys to files")
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
    """The file names in the index. Raises CheckpointError unless all are in the index's folder."""
    for key, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{index}: weight_map: {key}: {name!r} is not a *.safetensors file of this folder"
            )
    return sorted(set(weight_map.values()))


def _keys(file: Path) -> set[str]:
    return set(_open(file).keys())
