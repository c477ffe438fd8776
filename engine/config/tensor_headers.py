"""The headers of safetensors files: dtype, shape and place of each tensor. Torch-free."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

from engine.config.files import unreadable

MAX_HEADER_BYTES = 100 << 20  # of the safetensors format


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """`dtype` as the format names it, such as "BF16"; `begin` and `end` are offsets in `file`, in bytes."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def header_bytes(descriptor: int) -> bytes:
    """The JSON header of an open file; empty if the file cannot hold a header of the length that it
    states."""
    size = os.fstat(descriptor).st_size
    length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    return os.pread(descriptor, length, 8) if 8 + length <= min(size, MAX_HEADER_BYTES) else b""


def read_headers(file: Path) -> dict[str, TensorHeader]:
    """The tensors by key; none if the header is malformed, which the loader reports.

    Raises CheckpointError if the file cannot be read.
    """
    try:
        with file.open("rb", buffering=0) as stream:
            header = header_bytes(stream.fileno())
    except OSError as error:
        raise unreadable(file, error) from error
    return parse_headers(file, header)


def parse_headers(file: Path, header: bytes) -> dict[str, TensorHeader]:
    """As `read_headers`, of a header that was read."""
    try:
        declared = json.loads(header)
        declared.pop("__metadata__", None)
        return {key: _tensor(file, 8 + len(header), value) for key, value in declared.items()}
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return {}


def _tensor(file: Path, start: int, declared: dict[str, object]) -> TensorHeader:
    """`start` is where the data begins in the file."""
    begin, end = (start + int(offset) for offset in declared["data_offsets"])  # type: ignore[attr-defined]
    shape = tuple(int(size) for size in declared["shape"])  # type: ignore[attr-defined]
    return TensorHeader(file, str(declared["dtype"]), shape, begin, end)
