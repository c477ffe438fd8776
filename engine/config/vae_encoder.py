"""Whether a checkpoint can encode images. Torch-free."""

import json
from pathlib import Path

from engine.config.files import list_files
from engine.config.fingerprint import MAX_HEADER_BYTES

ENCODER_KEY = "encoder.conv_in.weight"


def has_encoder(folder: Path) -> bool:
    """Whether the weight files of a VAE's folder hold its encoder."""
    return any(ENCODER_KEY in _keys(file) for file in list_files(folder, ".safetensors"))


def _keys(file: Path) -> set[str]:
    """The keys in the file's header; none if it is malformed, which the loader reports."""
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            return set(json.loads(stream.read(size))) if size <= MAX_HEADER_BYTES else set()
    except (OSError, ValueError, TypeError, RecursionError):
        return set()
