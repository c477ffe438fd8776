"""Whether a checkpoint can encode images. Torch-free."""

from pathlib import Path

from engine.config.files import list_files
from engine.config.tensor_headers import read_headers

ENCODER_KEY = "encoder.conv_in.weight"


def has_encoder(folder: Path) -> bool:
    """Whether the weight files of a VAE hold its encoder. Raises CheckpointError if one is unreadable."""
    return any(ENCODER_KEY in read_headers(file) for file in list_files(folder, ".safetensors"))
