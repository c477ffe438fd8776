"""What a training picture contains: elements on a background, and where they stand.

Sizes and centres are snapped to a pixel grid, so that the same few patch patterns recur at
every place: this is what lets so small a model learn crisp outlines.
"""

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
# size word -> range of the side as a fraction of the shorter image side: alone in the middle, elsewhere
SIZES = {
    "small": ((0.22, 0.38), (0.22, 0.30)),
    "": ((0.48, 0.65), (0.36, 0.52)),
    "big": ((0.72, 0.90), (0.50, 0.65)),
}
PAIR_SIZE = (0.30, 0.45)
GRID = 8
SIDE_STEP = 16
MIN_SIDE = {"shape": 32, "letter": 48}


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
    """A picture: width and height in pixels, a background colour, elements in the order of their mention."""

    width: int
    height: int
    background: str
    elements: tuple[Element, ...]


def held_out(name: str, colour: str, background: str) -> bool:
    """Whether this combination is never trained on: one in eight, kept for measuring."""
    return zlib.crc32(f"{name}/{colour}/{background}".encode()) % 8 == 0


def snap_side(side: float, kind: str, width: int, height: int) -> int:
    """The nearest drawable side in pixels."""
    short = min(width, height)
    smallest = min(MIN_SIDE[kind], short - SIDE_STEP)
    largest = (short - SIDE_STEP // 2) // SIDE_STEP * SIDE_STEP
    return int(max(smallest, min(largest, round(side / SIDE_STEP) * SIDE_STEP)))


def snap_centre(centre: float, side: int, extent: int) -> int:
    """The nearest grid point that keeps the element inside the image; pixels."""
    snapped = round(centre / GRID) * GRID
    return int(max(side // 2, min(extent - side // 2, snapped)))


def stand(element: Element, cx: float, cy: float, side: float, width: int, height: int) -> Element:
    """The element with its centre and side snapped to the grid."""
    s = snap_side(side, element.kind, width, height)
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


def random_side(rng: random.Random, kind: str, span: tuple[float, float], short: int) -> int:
    """A drawable side inside the span (fractions of the shorter image side); pixels."""
    low, high = span[0] * short, span[1] * short
    sides = [s for s in range(SIDE_STEP, short, SIDE_STEP) if low <= s <= high and s >= MIN_SIDE[kind]]
    return rng.choice(sides) if sides else max(MIN_SIDE[kind], round(sum(span) / 2 * short))


def place_single(rng: random.Random, element: Element, width: int, height: int) -> Element:
    """The element where and as large as its words say; a little to any side when they say nothing."""
    alone = element.place in ("", "center")
    span = SIZES[element.size][0 if alone else 1]
    side = random_side(rng, element.kind, span, min(width, height))
    x, y = PLACES[element.place or "center"]
    drift = 0 if element.place == "center" else GRID
    dx, dy = (rng.choice((-drift, 0, drift)) for _ in range(2))
    return stand(element, x * width + dx, y * height + dy, side, width, height)


def place_pair(rng: random.Random, element: Element, width: int, height: int) -> Element:
    """One of two elements, on its own half."""
    side = random_side(rng, element.kind, PAIR_SIZE, min(width, height))
    x, y = PLACES[element.place]
    return stand(element, x * width, y * height, side, width, height)


def random_colours(rng: random.Random, names: list[str], measuring: bool = False) -> tuple[str, list[str]]:
    """(background, one colour per name); held-out combinations only, or never."""
    colours = list(COLOURS)
    while True:
        background = rng.choice(colours)
        own = [rng.choice(colours) for _ in names]
        out = [held_out(n, c, background) for n, c in zip(names, own, strict=True)]
        if background not in own and (all(out) if measuring else not any(out)):
            return background, own


def random_single(rng: random.Random, width: int, height: int, letters: float) -> Scene:
    """One element, sometimes with a place or a size."""
    kind, name = random_name(rng, letters)
    background, (colour,) = random_colours(rng, [name])
    place = rng.choice(list(PLACES)) if rng.random() < 0.35 else ""
    size = rng.choice(("small", "big")) if rng.random() < 0.25 else ""
    element = place_single(rng, Element(kind, name, colour, place=place, size=size), width, height)
    return Scene(width, height, background, (element,))


def random_pair(rng: random.Random, width: int, height: int, letters: float) -> Scene:
    """Two elements side by side or one above the other."""
    named = [random_name(rng, letters) for _ in range(2)]
    background, colours = random_colours(rng, [name for _, name in named])
    tall = rng.random() < (0.7 if height > width else 0.3)
    places = ["top", "bottom"] if tall else ["left", "right"]
    if rng.random() < 0.3:
        places.reverse()
    elements = [
        place_pair(rng, Element(kind, name, colour, place=place), width, height)
        for (kind, name), colour, place in zip(named, colours, places, strict=True)
    ]
    return Scene(width, height, background, tuple(elements))


def random_box(rng: random.Random, kind: str, name: str, width: int, height: int, largest: float) -> Box:
    """A box somewhere in the image, about tight round a drawable element; y0, x0, y1, x1 in thousandths."""
    short = min(width, height)
    side = max(MIN_SIDE[kind], rng.uniform(0.25, largest) * short)
    slack = (1.0, 1.0) if rng.random() < 0.75 else (rng.uniform(1, 1.5), rng.uniform(1, 1.5))
    h = min(1.0, side * slack[0] / height)
    w = min(1.0, side * slack[1] / width * (letter_aspect(name) if kind == "letter" else 1.0))
    y, x = rng.uniform(0, 1 - h), rng.uniform(0, 1 - w)
    step = rng.choice((1, 1, 5, 10, 25, 50))
    y0, x0, y1, x1 = (round(v * 1000 / step) * step for v in (y, x, y + h, x + w))
    return min(y0, 1000), min(x0, 1000), min(y1, 1000), min(x1, 1000)


def overlap(a: Element, b: Element) -> bool:
    """Whether two elements touch."""
    reach = (a.side + b.side) / 2
    return abs(a.cx - b.cx) < reach and abs(a.cy - b.cy) < reach


def random_boxed(rng: random.Random, width: int, height: int, letters: float) -> Scene:
    """One or two elements, each in a box of its own."""
    named = [random_name(rng, letters) for _ in range(1 if rng.random() < 0.7 else 2)]
    background, colours = random_colours(rng, [name for _, name in named])
    while True:
        elements = []
        for (kind, name), colour in zip(named, colours, strict=True):
            box = random_box(rng, kind, name, width, height, 0.9 if len(named) == 1 else 0.5)
            elements.append(fit_box(Element(kind, name, colour), box, width, height))
        if len(elements) == 1 or not overlap(elements[0], elements[1]):
            return Scene(width, height, background, tuple(elements))
