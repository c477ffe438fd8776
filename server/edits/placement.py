"""Where an image of a client lies in the picture that is made from it."""

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import Literal, NamedTuple

from server.schemas.errors import ApiError, invalid
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

    @property
    def is_empty(self) -> bool:
        return self.start >= self.end


@dataclass(frozen=True, slots=True)
class Placement:
    """The pixels `at` (left, top, right, bottom) of a picture of `size` show the part `box` of the image, in
    fractions of its sides. The rest of the picture is outside the image."""

    size: Size
    at: tuple[int, int, int, int]
    box: tuple[float, float, float, float]


def place(image: Size, margins: Margins, size: Size, fit: Fit) -> Placement:
    """Place an image with its margins in a picture of `size`. Raises ApiError 400, which names the side of
    `expand` and its limit, if all of the image is cut off.

    At scale 1 the image lies on whole pixels, so that they are kept as they are.
    """
    x, y = _spans(image, margins, size, fit)
    if x.is_empty or y.is_empty:
        raise _cut_off(image, margins, size, fit, 0 if x.is_empty else 1)
    return Placement(size, (x.start, y.start, x.end, y.end), (x.first, y.first, x.last, y.last))


def _cut_off(image: Size, margins: Margins, size: Size, fit: Fit, axis: int) -> ApiError:
    """The larger of the two margins of an axis pushes the image out."""
    side = max(margins._fields[axis::2], key=lambda name: int(getattr(margins, name)))

    def is_empty(pixels: int) -> bool:
        return _spans(image, margins._replace(**{side: pixels}), size, fit)[axis].is_empty

    most = bisect_left(range(getattr(margins, side)), True, key=is_empty) - 1
    hint = "" if fit == "contain" else "; or use `fit` `contain`"
    message = f"Nothing of the image is visible at {size}: `expand.{side}` must be at most {most}{hint}."
    return invalid(message, f"expand.{side}")


def _spans(image: Size, margins: Margins, size: Size, fit: Fit) -> tuple[_Span, _Span]:
    """Across and down."""
    canvas = margins.around(image)
    across, down = size.width / canvas.width, size.height / canvas.height
    if fit != "stretch":
        across = down = max(across, down) if fit == "cover" else min(across, down)
    return (
        _span(image.width, margins.left, margins.right, size.width, across),
        _span(image.height, margins.top, margins.bottom, size.height, down),
    )


def _span(side: int, before: int, after: int, target: int, scale: float) -> _Span:
    """The canvas is centred; what does not fit is cut off at both ends."""
    length = side * scale
    offset = math.floor((target - (before + side + after) * scale) / 2 + before * scale + 0.5)
    start, end = max(0, offset), min(target, offset + max(1, round(length)))
    first, last = (start - offset) / length, (end - offset) / length
    return _Span(start, end, max(0.0, first), min(1.0, last))
