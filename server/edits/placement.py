"""Where an image of a client lies in the picture that is made from it."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from server.schemas.errors import invalid
from server.schemas.sizes import Size

Fit = Literal["cover", "contain", "stretch"]


class Margins(NamedTuple):
    """Pixels of the image by which `expand` enlarges it on each side."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0

    def around(self, image: Size) -> Size:
        """The canvas: the image with its margins."""
        return Size(self.left + image.width + self.right, self.top + image.height + self.bottom)


class _Span(NamedTuple):
    """One axis: pixels `start` to `end` of the picture show the fractions `first` to `last` of the image."""

    start: int
    end: int
    first: float
    last: float


@dataclass(frozen=True, slots=True)
class Placement:
    """The pixels `at` (left, top, right, bottom) of a picture of `size` show the part `box` of the image, in
    fractions of its sides. The rest of the picture is outside the image."""

    size: Size
    at: tuple[int, int, int, int]
    box: tuple[float, float, float, float]


def place(image: Size, margins: Margins, size: Size, fit: Fit) -> Placement:
    """Place an image with its margins in a picture of `size`. Raises ApiError 400 if all of it is cut off.

    At scale 1 the image lies on whole pixels, so that they are kept as they are.
    """
    canvas = margins.around(image)
    across, down = size.width / canvas.width, size.height / canvas.height
    if fit != "stretch":
        across = down = max(across, down) if fit == "cover" else min(across, down)
    x = _span(image.width, margins.left, margins.right, size.width, across)
    y = _span(image.height, margins.top, margins.bottom, size.height, down)
    if x.start >= x.end or y.start >= y.end:
        message = f"Nothing of the image is visible at {size}; expand it less, or use `fit` `contain`."
        raise invalid(message, "expand")
    return Placement(size, (x.start, y.start, x.end, y.end), (x.first, y.first, x.last, y.last))


def _span(side: int, before: int, after: int, target: int, scale: float) -> _Span:
    """The canvas is centred; what does not fit is cut off at both ends."""
    length = side * scale
    offset = math.floor((target - (before + side + after) * scale) / 2 + before * scale + 0.5)
    start, end = max(0, offset), min(target, offset + max(1, round(length)))
    first, last = (start - offset) / length, (end - offset) / length
    return _Span(start, end, max(0.0, first), min(1.0, last))
