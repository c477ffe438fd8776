"""The header of a safetensors file, read without the weights. Torch-free."""

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from engine.config.files import require_file, unreadable
from engine.errors import CheckpointError

MAX_HEADER_BYTES = 16 << 20
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_TRIGGERS = ("modelspec.trigger_phrase", "trigger_words", "trigger_word", "trigger_phrase")
_MAX_TRIGGERS, _MAX_TRIGGER = 20, 200


class AdapterError(Exception):
    """An adapter that cannot be served. The message is one line that names the file and the key."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class StoredTensor(BaseModel):
    """A tensor in the header."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dtype: str
    shape: tuple[Annotated[int, Field(ge=0, le=1 << 32)], ...]
    data_offsets: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]


_DECLARED = TypeAdapter(dict[str, dict[str, Any]])
_METADATA = TypeAdapter(dict[str, str])
_TENSORS = TypeAdapter(dict[str, StoredTensor])


@dataclass(frozen=True, slots=True)
class Header:
    """The tensors and the metadata of a file of so many bytes."""

    path: Path
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]
    bytes: int

    def error(self, key: str, problem: str) -> AdapterError:
        """An error that names the file and the key."""
        return AdapterError(f"{self.path}: {key}: {problem}")

    def in_file_order(self) -> list[tuple[str, StoredTensor]]:
        """The tensors by key, in the order of their data."""
        return sorted(self.tensors.items(), key=lambda item: item[1].data_offsets)

    @property
    def data_begin(self) -> int:
        """The first byte of the tensors in the file."""
        return self.bytes - max((tensor.data_offsets[1] for tensor in self.tensors.values()), default=0)

    @property
    def trigger_words(self) -> tuple[str, ...]:
        """The words that trainers recommend in prompts."""
        stored = ",".join(filter(None, (self.metadata.get(key) for key in _TRIGGERS)))
        words = (word.strip()[:_MAX_TRIGGER] for word in stored.split(","))
        return tuple(dict.fromkeys(filter(None, words)))[:_MAX_TRIGGERS]


def read_header(path: Path) -> Header:
    """Raises AdapterError if the file cannot be read, is not safetensors or is truncated."""
    try:
        size = require_file(path)
        with path.open("rb") as stream:
            return _read(path, stream, size)
    except CheckpointError as error:
        raise AdapterError(str(error)) from error
    except OSError as error:
        raise AdapterError(str(unreadable(path, error))) from error


def header_of(path: Path, content: bytes) -> Header:
    """As `read_header`, of the bytes of the file."""
    return _read(path, io.BytesIO(content), len(content))


def _read(path: Path, stream: BinaryIO, size: int) -> Header:
    length = int.from_bytes(stream.read(8), "little")
    if length > size - 8:
        raise AdapterError(f"{path}: not a safetensors file")
    if length > MAX_HEADER_BYTES:
        raise AdapterError(f"{path}: a header of {length} bytes, at most {MAX_HEADER_BYTES}")
    return _parse(path, stream.read(length), size)


def _parse(path: Path, header: bytes, size: int) -> Header:
    try:
        declared = _DECLARED.validate_json(header)
        metadata = _METADATA.validate_python(declared.pop("__metadata__", {}))
        tensors = _TENSORS.validate_python(declared)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = str(problem["loc"][0]) if problem["loc"] else "header"
        raise AdapterError(f"{path}: {key}: {problem['msg']}") from error
    checked = Header(path, tensors, metadata, size)
    end = 8 + len(header) + _data_bytes(checked)
    if end != size:
        raise AdapterError(f"{path}: {size} bytes, but the header describes {end}")
    return checked


def _data_bytes(header: Header) -> int:
    """The bytes of all tensors. Raises AdapterError unless they follow each other in the file."""
    end = 0
    for key, tensor in header.in_file_order():
        begin, after = tensor.data_offsets
        if begin != end:
            raise header.error(key, f"begins at byte {begin} of the data, expected {end}")
        expected = begin + math.prod(tensor.shape) * _BYTES.get(tensor.dtype, 0)
        if after != expected and tensor.dtype in _BYTES:
            raise header.error(key, f"ends at byte {after} of the data, expected {expected}")
        end = after
    return end
