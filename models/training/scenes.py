"""What a training picture contains: an element on a background, and where it stands.

An element's square is made of whole tiles, the 16 x 16 pixels of one DiT token, so that a letter of
one size is the same few token patterns at every place: this is what lets so small a model learn it.
"""

import math
import random
import zlib
from dataclasses import dataclass, replace

RGB = tuple[int, int, int]
Box = tuple[int, int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (225, 30, 35),
    "green": (25, 150, 50),
    "blue": (30, 70, 220),
    "yellow": (250, 220, 40),
    "orange": (250, 135, 20),
    "purple": (130, 40, 170),
    "pink": (250, 150, 190),
    "cyan": (50, 205, 220),
    "black": (10, 10, 10),
    "white": (250, 250, 250),
    "gray": (128, 128, 128),
    "brown": (110, 65, 30),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond", "heart", "ring")
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")

# position word -> centre (x, y) as a fraction of the sides
PLACES: dict[str, tuple[float, float]] = {
    "left": (0.25, 0.5),
    "right": (0.75, 0.5),
    "top": (0.5, 0.25),
    "bottom": (0.5, 0.75),
    "top left": (0.25, 0.25),
    "top right": (0.75, 0.25),
    "bottom left": (0.25, 0.75),
    "bottom right": (0.75, 0.75),
    "center": (0.5, 0.5),
}
# size word -> side as a fraction of the shorter image side: in the middle, elsewhere
SIZES = {
    "small": (0.375, 0.375),
    "": (0.55, 0.45),
    "big": (0.8, 0.6),
}
DRIFT = 0.2  # share of the elements without a place that stand a tile beside the middle
TILE = 16
LEAST_TILES, MOST_TILES = 3, 6  # an element's side


@dataclass(frozen=True)
class Element:
    """One thing drawn. Centre and side are pixels; place, size and bbox are what the caption says of them."""

    kind: str
    name: str
    colour: str
    cx: int = 0
    cy: int = 0
    side: int = 0
    place: str = ""
    size: str = ""
    bbox: Box | None = None


@dataclass(frozen=True)
class Scene:
    """A picture: width and height in pixels, a background colour, what stands on it."""

    width: int
    height: int
    background: str
    element: Element


def held_out(name: str, colour: str, background: str) -> bool:
    """Whether this combination is never trained on: one in eight, kept for measuring."""
    return zlib.crc32(f"{name}/{colour}/{background}".encode()) % 8 == 0


def snap_side(side: float, width: int, height: int) -> int:
    """The nearest drawable side in pixels: it leaves at least one tile of the image free."""
    most = min(MOST_TILES, min(width, height) // TILE - 1)
    return TILE * max(LEAST_TILES, min(most, round(side / TILE)))


def snap_centre(centre: float, side: int, extent: int) -> int:
    """The nearest centre in pixels at which the element covers whole tiles inside the image."""
    first = math.floor((centre - side / 2) / TILE + 0.5)
    return side // 2 + TILE * max(0, min((extent - side) // TILE, first))


def stand(element: Element, cx: float, cy: float, side: float, width: int, height: int) -> Element:
    """The element with its centre and side snapped to tiles."""
    s = snap_side(side, width, height)
    return replace(element, side=s, cx=snap_centre(cx, s, width), cy=snap_centre(cy, s, height))


def fit_box(element: Element, box: Box, width: int, height: int) -> Element:
    """The element as large as its box allows and centred in it. box: y0, x0, y1, x1 in thousandths."""
    y0, x0, y1, x1 = (
        v / 1000 * extent for v, extent in zip(box, (height, width, height, width), strict=True)
    )
    aspect = letter_aspect(element.name) if element.kind == "letter" else 1.0
    side = min(y1 - y0, (x1 - x0) / aspect)
    return replace(stand(element, (x0 + x1) / 2, (y0 + y1) / 2, side, width, height), bbox=box)


def letter_aspect(name: str) -> float:
    """Width of a letter over its height."""
    return 1.0 if name in "MW" else 0.8


def random_name(rng: random.Random, letters: float) -> tuple[str, str]:
    """(kind, name); `letters` is the chance of a letter."""
    return ("letter", rng.choice(LETTERS)) if rng.random() < letters else ("shape", rng.choice(SHAPES))


def place_single(rng: random.Random, element: Element, width: int, height: int) -> Element:
    """The element where and as large as its words say.

    Nearly all of the picture follows from the words: what is left to chance hides the outline from the model.
    """
    side = SIZES[element.size][element.place not in ("", "center")] * min(width, height)
    x, y = PLACES[element.place or "center"]
    drift = TILE if not element.place and rng.random() < DRIFT else 0
    dx, dy = (rng.choice((-drift, 0, drift)) for _ in range(2))
    return stand(element, x * width + dx, y * height + dy, side, width, height)


def random_colours(rng: random.Random, name: str, measuring: bool = False) -> tuple[str, str]:
    """(colour, background); held-out combinations only, or never."""
    while True:
        colour, background = rng.sample(list(COLOURS), 2)
        if held_out(name, colour, background) == measuring:
            return colour, background


def random_single(rng: random.Random, width: int, height: int, letters: float) -> Scene:
    """An element, sometimes with a place or a size."""
    kind, name = random_name(rng, letters)
    colour, background = random_colours(rng, name)
    place = rng.choice(list(PLACES)) if rng.random() < 0.35 else ""
    size = rng.choice(("small", "big")) if rng.random() < 0.25 else ""
    element = place_single(rng, Element(kind, name, colour, place=place, size=size), width, height)
    return Scene(width, height, background, element)


def random_box(rng: random.Random, kind: str, name: str, width: int, height: int) -> Box:
    """A box somewhere in the image, about tight round a drawable element; y0, x0, y1, x1 in thousandths."""
    short = min(width, height)
    side = rng.uniform(LEAST_TILES * TILE, min((MOST_TILES + 0.5) * TILE, short - TILE))
    slack = (1.0, 1.0) if rng.random() < 0.75 else (rng.uniform(1, 1.5), rng.uniform(1, 1.5))
    h = min(1.0, side * slack[0] / height)
    w = min(1.0, side * slack[1] / width * (letter_aspect(name) if kind == "letter" else 1.0))
    y, x = rng.uniform(0, 1 - h), rng.uniform(0, 1 - w)
    step = rng.choice((1, 1, 5, 10, 25, 50))
    y0, x0, y1, x1 = (round(v * 1000 / step) * step for v in (y, x, y + h, x + w))
    return min(y0, 1000), min(x0, 1000), min(y1, 1000), min(x1, 1000)


def random_boxed(rng: random.Random, width: int, height: int, letters: float) -> Scene:
    """An element in a box."""
    kind, name = random_name(rng, letters)
    colour, background = random_colours(rng, name)
    box = random_box(rng, kind, name, width, height)
    return Scene(width, height, background, fit_box(Element(kind, name, colour), box, width, height))
