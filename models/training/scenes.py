"""Scenes: elements on a background, their positions, and random scenes of one element.

Elements are aligned to tiles of 16 x 16 pixels, the size of one DiT token. A letter of one size therefore
has the same few token patterns at every position, which lets so small a model learn it.
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
# size word -> side as a fraction of the shorter image side, in the centre and elsewhere
SIZES = {
    "small": (0.375, 0.375),
    "": (0.55, 0.45),
    "big": (0.8, 0.6),
}
# fractions of the scenes that are black on white, and on any usual background, which a prompt need not name
USUAL_COLOURS, USUAL_BACKGROUND = 0.07, 0.15
DRIFT = 0.2  # fraction of the elements without a place that are one tile off the centre
TILE = 16
LEAST_TILES, MOST_TILES = 3, 6  # bounds of an element's side
WORD_TILES = 2  # side of a word's letters


@dataclass(frozen=True)
class Element:
    """A drawn shape, letter or word. Centre and side are in pixels; place, size and bbox as in the prompt.

    The side of a word is that of each of its letters.
    """

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
    """An image: width and height in pixels, background colour and one or two elements.

    `relation` is that of the element to the other: left, right, above, below or inside.
    """

    width: int
    height: int
    background: str
    element: Element
    other: Element | None = None
    relation: str = ""

    @property
    def elements(self) -> tuple[Element, ...]:
        """The elements in the order of the caption."""
        return (self.element, self.other) if self.other else (self.element,)

    @property
    def behind(self) -> tuple[Element, ...]:
        """The elements in the order in which they are drawn."""
        return self.elements[::-1] if self.relation == "inside" else self.elements


def usual_colour(background: str) -> str:
    """The colour of an element whose colour is not named."""
    return "white" if background == "black" else "black"


def usual_background(elements: tuple[Element, ...]) -> str:
    """The background of elements whose background is not named."""
    return "black" if any(element.colour == "white" for element in elements) else "white"


def held_out(name: str, colour: str, background: str) -> bool:
    """Whether a combination is reserved for measuring: about one in eight."""
    return zlib.crc32(f"{name}/{colour}/{background}".encode()) % 8 == 0


def snap_side(side: float, width: int, height: int) -> int:
    """The nearest allowed side in pixels, which leaves at least one tile of the image free."""
    most = min(MOST_TILES, min(width, height) // TILE - 1)
    return TILE * max(LEAST_TILES, min(most, round(side / TILE)))


def snap_centre(centre: float, side: int, extent: int) -> int:
    """The nearest centre in pixels that aligns the element to tiles inside the image."""
    first = math.floor((centre - side / 2) / TILE + 0.5)
    return side // 2 + TILE * max(0, min((extent - side) // TILE, first))


def stand(element: Element, cx: float, cy: float, side: float, width: int, height: int) -> Element:
    """The element with its centre and side aligned to tiles."""
    s = snap_side(side, width, height)
    return replace(element, side=s, cx=snap_centre(cx, s, width), cy=snap_centre(cy, s, height))


def fit_box(element: Element, box: Box, width: int, height: int) -> Element:
    """The element centred in its box, as large as fits. box: y0, x0, y1, x1 in thousandths."""
    y0, x0, y1, x1 = (
        v / 1000 * extent for v, extent in zip(box, (height, width, height, width), strict=True)
    )
    aspect = letter_aspect(element.name) if element.kind == "letter" else 1.0
    side = min(y1 - y0, (x1 - x0) / aspect)
    return replace(stand(element, (x0 + x1) / 2, (y0 + y1) / 2, side, width, height), bbox=box)


def letter_aspect(name: str) -> float:
    """The width of a letter divided by its height."""
    return 1.0 if name in "MW" else 0.8


def random_name(rng: random.Random, letters: float) -> tuple[str, str]:
    """A random (kind, name); `letters` is the probability of a letter."""
    return ("letter", rng.choice(LETTERS)) if rng.random() < letters else ("shape", rng.choice(SHAPES))


def place_single(rng: random.Random, element: Element, width: int, height: int) -> Element:
    """The element at the position and size that its words describe.

    Little else is random, because random positions and sizes keep the model from learning outlines.
    """
    side = SIZES[element.size][element.place not in ("", "center")] * min(width, height)
    x, y = PLACES[element.place or "center"]
    drift = TILE if not element.place and rng.random() < DRIFT else 0
    dx, dy = (rng.choice((-drift, 0, drift)) for _ in range(2))
    return stand(element, x * width + dx, y * height + dy, side, width, height)


def usual_colours(rng: random.Random, colour: str, background: str) -> tuple[str, str]:
    """The colour and background of a scene, or in some cases those that a prompt need not name."""
    chance = rng.random()
    if chance < USUAL_COLOURS:
        return "black", "white"
    if chance < USUAL_BACKGROUND:
        return colour, "black" if colour == "white" else "white"
    return colour, background


def random_colours(rng: random.Random, name: str, measuring: bool = False) -> tuple[str, str]:
    """A random (colour, background), from the held-out combinations if `measuring`, else from the others."""
    while True:
        colour, background = usual_colours(rng, *rng.sample(list(COLOURS), 2))
        if held_out(name, colour, background) == measuring:
            return colour, background


def random_single(rng: random.Random, width: int, height: int, letters: float) -> Scene:
    """A scene with an element that sometimes has a place or a size."""
    kind, name = random_name(rng, letters)
    colour, background = random_colours(rng, name)
    place = rng.choice(list(PLACES)) if rng.random() < 0.35 else ""
    size = rng.choice(("small", "big")) if rng.random() < 0.25 else ""
    element = place_single(rng, Element(kind, name, colour, place=place, size=size), width, height)
    return Scene(width, height, background, element)


def random_box(rng: random.Random, kind: str, name: str, width: int, height: int) -> Box:
    """A random box, about the size of an allowed element: y0, x0, y1, x1 in thousandths."""
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
    """A scene with an element in a box."""
    kind, name = random_name(rng, letters)
    colour, background = random_colours(rng, name)
    box = random_box(rng, kind, name, width, height)
    return Scene(width, height, background, fit_box(Element(kind, name, colour), box, width, height))
