"""Aspect ratios as magic prompt upstreams take them."""

import math

# The ratios that the hosted service accepts.
HOSTED = (
    *("1x4", "1x3", "1x2", "9x16", "10x16", "2x3", "3x4", "4x5", "1x1"),
    *("5x4", "4x3", "3x2", "16x10", "16x9", "2x1", "3x1", "4x1"),
)


def exact(width: int, height: int) -> str:
    """`16x9` for 1280 and 720."""
    divisor = math.gcd(width, height)
    return f"{width // divisor}x{height // divisor}"


def hosted(width: int, height: int) -> str:
    """The nearest ratio that the hosted service accepts."""
    return min(HOSTED, key=lambda ratio: abs(math.log(width / height) - _log(ratio)))


def _log(ratio: str) -> float:
    wide, high = ratio.split("x")
    return math.log(int(wide) / int(high))
