"""Bytes of a part's weights in memory, by the headers of its files and the way they are kept. Torch-free."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.config.files import list_files
from engine.config.key_names import is_weight, published_names
from engine.config.tensor_headers import TensorHeader, read_headers
from engine.precision import (
    NF4_BLOCK,
    PrecisionOptions,
    has_fp8_kernel,
    is_quantizable,
    stays_exact,
)

# Of a matrix; "plain" is the compute dtype.
Format = Literal["plain", "fp8", "nf4"]
# What the files hold: what their headers say, or every matrix in one format.
Files = Literal["stored", "plain", "fp8", "nf4"]
Headers = Mapping[str, TensorHeader]
_AS_STORED = PrecisionOptions("stored")

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


@dataclass(frozen=True, slots=True)
class Kept:
    """How a tensor is in memory: its format in the files or after quantisation, and whether its values are
    widened, or multiplied in fp8."""

    format: Format = "plain"
    is_widened: bool = False
    is_in_fp8: bool = False

    @property
    def is_dequantised(self) -> bool:
        """Whether each use makes a copy in the compute dtype."""
        return self.format != "plain" and not (self.is_widened or self.is_in_fp8)

    def bytes(self, elements: int, rows: int, itemsize: int) -> int:
        """Of the values and their scales. `itemsize` is that of the compute dtype."""
        if self.format == "fp8":  # a float32 scale per row
            return elements * (itemsize if self.is_widened else 1) + 4 * rows
        if self.format == "nf4" and not self.is_widened:  # a scale per block, and the code book
            return elements // 2 + 4 * (elements // NF4_BLOCK) + 4 * 16
        return elements * itemsize


def weight_bytes(
    headers: Headers, itemsize: int, precision: PrecisionOptions = _AS_STORED, files: Files = "stored"
) -> int:
    """Bytes in memory. `itemsize` is that of the compute dtype, in bytes."""
    return sum(
        kept(key, headers, precision, files).bytes(
            _elements(key, headers), (*headers[key].shape, 1)[0], itemsize
        )
        for key in headers
        if not _AUXILIARY.fullmatch(key)
    )


def kept(key: str, headers: Headers, precision: PrecisionOptions, files: Files = "stored") -> Kept:
    """How a tensor is kept. Weights that may be widened ("auto") count as stored."""
    stored, shape = stored_format(key, headers), headers[key].shape
    is_matrix = stored != "plain" or (len(shape) == 2 and "embed_" not in key)
    held = files if is_matrix and files != "stored" else stored
    if is_matrix and held == "plain" and precision.quantize and is_quantizable(shape[1], precision.quantize):
        held = precision.quantize
    if held == "fp8" and precision.matmul == "fp8" and has_fp8_kernel(*shape) and not stays_exact(key):
        return Kept(held, is_in_fp8=True)
    return Kept(held, is_widened=held != "plain" and precision.weights == "widened")


def stored_format(key: str, headers: Headers) -> Format:
    """The format of a tensor in the files."""
    if f"{key}_scale" in headers:
        return "fp8"
    return "nf4" if f"{key}{_NF4_STATE}" in headers else "plain"


def _elements(key: str, headers: Headers) -> int:
    """Elements of a tensor; two are in a byte of nf4."""
    return headers[key].numel * (2 if stored_format(key, headers) == "nf4" else 1)
