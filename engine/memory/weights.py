"""Bytes of a part's weights in memory, by the headers of its files and the way they are kept. Torch-free."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from engine.config.files import list_files
from engine.config.key_names import is_weight, published_names
from engine.config.tensor_headers import TensorHeader, read_headers

# As the files store them, or every matrix in one format; "plain" is the compute dtype.
Keep = Literal["stored", "plain", "fp8", "nf4"]
Headers = Mapping[str, TensorHeader]

_NF4_STATE = ".quant_state.bitsandbytes__nf4"
# Belongs to a quantised matrix, with which it is counted.
_AUXILIARY = re.compile(r".*\.weight(_scale|\.absmax|\.quant_map|\.quant_state\..*)")


def part_headers(folder: Path, unread: tuple[str, ...] = ()) -> Headers:
    """The tensors of a part by their published keys, without those that start with one of `unread`."""
    stored: dict[str, TensorHeader] = {}
    for file in list_files(folder, ".safetensors"):
        stored |= read_headers(file)
    names = published_names(stored)
    return {key: stored[name] for key, name in names.items() if is_weight(key) and not key.startswith(unread)}


def weight_bytes(headers: Headers, itemsize: int, keep: Keep = "stored") -> int:
    """Bytes in memory. `itemsize` is that of the compute dtype, in bytes."""
    return sum(
        _bytes(key, _format(key, headers, keep), headers, itemsize)
        for key in headers
        if not _AUXILIARY.fullmatch(key)
    )


def stored_format(headers: Headers) -> Keep:
    """The format of the matrices: "plain" if none is quantised."""
    formats = {_stored_format(key, headers) for key in headers} - {"plain"}
    return formats.pop() if formats else "plain"


def _bytes(key: str, kept: Keep, headers: Headers, itemsize: int) -> int:
    elements = _elements(key, headers)
    if kept == "fp8":
        return elements + 4 * headers[key].shape[0]  # a float32 scale per row
    if kept == "nf4":
        return elements // 2 + 4 * (elements // 64) + 4 * 16  # a scale per block, and the code book
    return elements * itemsize


def _format(key: str, headers: Headers, keep: Keep) -> Keep:
    stored = _stored_format(key, headers)
    is_matrix = stored != "plain" or (len(headers[key].shape) == 2 and "embed_" not in key)
    return stored if keep == "stored" or not is_matrix else keep


def _stored_format(key: str, headers: Headers) -> Keep:
    if f"{key}_scale" in headers:
        return "fp8"
    return "nf4" if f"{key}{_NF4_STATE}" in headers else "plain"


def _elements(key: str, headers: Headers) -> int:
    """Elements of a tensor; two are in a byte of nf4."""
    return headers[key].numel * (2 if _stored_format(key, headers) == "nf4" else 1)
