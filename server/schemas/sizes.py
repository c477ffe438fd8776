"""Image sizes as clients write them, and rounding to a size that the model allows."""

import math
import re
from typing import NamedTuple

from engine.config.model_config import Limits

MAX_SIDE = 10**9
_SIDES = re.compile(r"([0-9]{1,9})[xX*]([0-9]{1,9})")
_RATIO = re.compile(r"([0-9]{1,5})[:xX]([0-9]{1,5})")
SIZE_PATTERN = r"^(auto|[0-9]{1,9}[xX*][0-9]{1,9}|[0-9]{1,5}:[0-9]{1,5})$"
RATIO_PATTERN = r"^(auto|[0-9]{1,5}[:xX][0-9]{1,5})$"


class Size(NamedTuple):
    """Pixels, or the two sides of a ratio."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


def parse_sides(text: str) -> Size | None:
    """`1024x768`, `1024X768` or `1024*768`."""
    return _parse(_SIDES, text)


def parse_ratio(text: str) -> Size | None:
    """`16:9` or `16x9`."""
    return _parse(_RATIO, text)


def _parse(pattern: re.Pattern[str], text: str) -> Size | None:
    match = pattern.fullmatch(text)
    return Size(int(match[1]), int(match[2])) if match else None


def is_allowed(size: Size, limits: Limits) -> bool:
    return limits.allow_sides(*size) and limits.allow_ratio(*size)


def describe(limits: Limits) -> str:
    """The rule as a sentence of an error message."""
    low, high, step = limits.min_size, limits.max_size, limits.multiple_of
    ratio = f"an aspect ratio of at most {limits.max_aspect_ratio:g}:1"
    return f"Width and height must be multiples of {step} from {low} to {high} with {ratio}."


def nearest(size: Size, limits: Limits) -> Size:
    """The allowed size closest to `size`: its shape as far as the limits allow, each side rounded."""
    short, long = sorted(max(side, 1) for side in size)
    ratio = min(long / short, limits.max_aspect_ratio)
    low = min(max(float(limits.min_size), min(long, limits.max_size) / ratio), limits.max_size)
    short = _rounded(low, limits)
    long = min(_rounded(low * ratio, limits), _floor(short * limits.max_aspect_ratio, limits.multiple_of))
    return Size(long, short) if size.width >= size.height else Size(short, long)


def of_ratio(ratio: Size, area: int) -> Size:
    """The size of `area` pixels in the shape of `ratio`, which the model need not allow."""
    scale = math.sqrt(area / (ratio.width * ratio.height))
    return Size(round(ratio.width * scale), round(ratio.height * scale))


def _rounded(side: float, limits: Limits) -> int:
    step = limits.multiple_of
    return min(max(math.floor(side / step + 0.5) * step, limits.min_size), limits.max_size)


def _floor(side: float, step: int) -> int:
    return math.floor(side / step) * step
