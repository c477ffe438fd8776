"""Identifies a checkpoint by its contents, without reading all of its weights. Torch-free."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from engine.config.files import list_files, read_bytes, require_file, unreadable
from engine.config.tensor_headers import header_bytes, parse_headers
from engine.errors import CheckpointError

FOLDERS = ("", "scheduler", "text_encoder", "tokenizer", "transformer", "unconditional_transformer", "vae")
# Bytes of a sample. Each tensor is sampled at its start, at every stride, and at its end.
SAMPLE_BYTES = 4 << 10
STRIDE_BYTES = 16 << 20


def fingerprint(path: Path, transformer: Path | None = None, uncond_adapter: Path | None = None) -> str:
    """12 hex digits over every config, tokenizer and template, and over samples of every tensor; "" without
    weights.

    Names, shapes and dtypes of the tensors are included. `transformer` is the folder that replaces the one in
    `path`, and `uncond_adapter` the file of an adapter that replaces the unconditional one. Raises
    CheckpointError naming the file.
    """
    folders = {name: path / name for name in FOLDERS}
    if transformer:
        folders["transformer"] = transformer
    digest, has_weights = hashlib.sha256(), False
    for suffix in (".json", ".jinja", ".safetensors"):
        read = _samples if suffix == ".safetensors" else _whole
        files = ((name, file) for name, folder in folders.items() for file in list_files(folder, suffix))
        for name, file in files:
            digest.update(f"{Path(name, file.name)}:{require_file(file)}".encode())
            for sample in read(file):
                digest.update(sample)
            has_weights |= suffix == ".safetensors"
    if not has_weights:
        return ""
    for part in _adapter(uncond_adapter) if uncond_adapter else ():
        digest.update(part)
    return digest.hexdigest()[:12]


def _adapter(file: Path) -> Iterator[bytes]:
    try:
        yield f"uncond_adapter:{require_file(file)}".encode()
        yield from _samples(file)
    except CheckpointError as error:
        raise CheckpointError(f"--uncond-adapter: {error}") from error


def _whole(file: Path) -> Iterator[bytes]:
    yield read_bytes(file)


def _samples(file: Path) -> Iterator[bytes]:
    """The header and samples of each tensor; samples of the whole file if the header is malformed."""
    try:
        with file.open("rb", buffering=0) as stream:
            size = os.fstat(stream.fileno()).st_size
            if hasattr(os, "posix_fadvise"):  # disables read-ahead
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            header = header_bytes(stream.fileno())
            yield header
            tensors = [(each.begin, each.end) for each in parse_headers(file, header).values()]
            for begin, end in tensors or [(0, size)]:
                for at in _positions(max(0, begin), min(size, end)):
                    yield os.pread(stream.fileno(), SAMPLE_BYTES, at)
    except OSError as error:
        raise unreadable(file, error) from error


def _positions(begin: int, end: int) -> Iterator[int]:
    """Offsets of the samples between two offsets: every stride, and the last bytes."""
    yield from range(begin, end, STRIDE_BYTES)
    yield max(begin, end - SAMPLE_BYTES)
