"""Source images for tests."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from engine.request import SourceImage

Pixels = NDArray[np.uint8]


def source(rgb: Pixels, strength: float = 0.7, mask: Pixels | None = None) -> SourceImage:
    """RGB (height, width, 3), mask (height, width)."""
    data = (rgb.tobytes(), b"" if mask is None else mask.tobytes())
    digest = hashlib.sha256(b"".join(data)).hexdigest()
    return SourceImage(data[0], None if mask is None else data[1], strength, digest)


def gradient(width: int, height: int) -> Pixels:
    """A picture with an edge: a gradient, and a disc in another colour."""
    y, x = np.mgrid[:height, :width]
    rgb = np.stack([255 * x / width, 255 * y / height, 128 + 0 * x], axis=2)
    rgb[(x - width / 2) ** 2 + (y - height / 2) ** 2 < (min(width, height) / 3) ** 2] = (220, 40, 30)
    return rgb.astype(np.uint8)


def rectangle(width: int, height: int, left: int, top: int, right: int, bottom: int) -> Pixels:
    """A mask that paints a rectangle."""
    mask = np.zeros((height, width), np.uint8)
    mask[top:bottom, left:right] = 255
    return mask
