"""Random scenes of two elements.

In a sentence, a relation determines both positions. Boxes are anywhere, with a gap between them.
"""

import random
from dataclasses import replace

from models.training.scenes import COLOURS, TILE, Box, Element, Scene, held_out, random_name, usual_colours

SIDE = 128  # of the images, in pixels: smaller ones have no room for two elements
LETTERS = 0.15  # fraction of the elements that are letters
Cell = tuple[int, int, int]  # column, row and side in tiles
Pair = tuple[Element, Element]
# relation -> cells of the element and the other
CELLS: dict[str, tuple[Cell, Cell]] = {
    "left": ((0, 3, 3), (5, 3, 3)),
    "above": ((3, 0, 3), (3, 5, 3)),
    "inside": ((3, 3, 2), (1, 1, 6)),
}
INVERSE = {"left": "right", "right": "left", "above": "below", "below": "above"}
LOW = ("triangle",)  # shapes that have room for another only in their lower half
GRID = SIDE // TILE


def flipped(scene: Scene) -> Scene:
    """The same scene with its elements in the other order."""
    assert scene.other
    return replace(scene, element=scene.other, other=scene.element, relation=INVERSE[scene.relation])


def put(element: Element, cell: Cell) -> Element:
    """The element in a cell."""
    column, row, side = (TILE * v for v in cell)
    return replace(element, cx=column + side // 2, cy=row + side // 2, side=side)


def put_both(first: Element, second: Element, relation: str, column: int = 0, row: int = 0) -> Pair:
    """Both elements in the cells of a relation, moved by a number of tiles."""
    low = relation == "inside" and second.name in LOW
    (x, y, side), (other_x, other_y, other_side) = CELLS[relation]
    return (
        put(first, (x + column, y + row + low, side)),
        put(second, (other_x + column, other_y + row, other_side)),
    )


def random_elements(rng: random.Random, relation: str, measuring: bool) -> tuple[Pair, str]:
    """Two elements and a background; both in combinations that are held out if `measuring`, else neither."""
    while True:
        a, b = (Element(*random_name(rng, LETTERS), rng.choice(list(COLOURS))) for _ in "ab")
        _, background = usual_colours(rng, a.colour, rng.choice(list(COLOURS)))
        inside = relation == "inside"
        distinct = background not in (a.colour, b.colour) and not (inside and a.colour == b.colour)
        held = {held_out(each.name, each.colour, background) for each in (a, b)}
        if distinct and held == {measuring} and not (inside and b.kind == "letter"):
            return (a, b), background


def random_pair(rng: random.Random, measuring: bool = False) -> Scene:
    """Two elements at the positions of a relation: left, above or inside."""
    relation = rng.choice(list(CELLS))
    elements, background = random_elements(rng, relation, measuring)
    return Scene(SIDE, SIDE, background, *put_both(*elements, relation), relation)


def box_around(rng: random.Random, element: Element) -> Element:
    """The element with a box around it, wrong by a few pixels at most."""
    half, step = element.side / 2, rng.choice((1, 5, 10, 25))

    def edge(pixels: float) -> int:
        value = pixels / SIDE * 1000 + rng.uniform(-15, 15)
        return max(0, min(1000, round(value / step) * step))

    x, y = element.cx, element.cy
    box: Box = (edge(y - half), edge(x - half), edge(y + half), edge(x + half))
    return replace(element, bbox=box)


def random_cells(rng: random.Random) -> tuple[Cell, Cell]:
    """The cells of two elements, the first left of the second, with a gap of a tile."""
    first, second = (rng.choice((3, 3, 4)) for _ in range(2))
    second = min(second, GRID - 1 - first)
    gap = rng.randint(1, GRID - first - second)
    column = rng.randint(0, GRID - first - gap - second)
    row, other = rng.randint(0, GRID - first), rng.randint(0, GRID - second)
    return (column, row, first), (column + first + gap, other, second)


def random_boxed_pair(rng: random.Random, measuring: bool = False) -> Scene:
    """Two elements in boxes, in any order."""
    relation = rng.choice(("left", "left", "above", "above", "inside"))
    elements, background = random_elements(rng, relation, measuring)
    if relation == "inside":
        placed = put_both(*elements, relation, rng.choice((-1, 0, 0, 1)), rng.choice((-1, 0, 0, 1)))
    else:
        cells = random_cells(rng)
        if relation == "above":
            cells = tuple((row, column, side) for column, row, side in cells)  # type: ignore[assignment]
        placed = put(elements[0], cells[0]), put(elements[1], cells[1])
    element, other = (box_around(rng, each) for each in placed)
    scene = Scene(SIDE, SIDE, background, element, other, relation)
    return flipped(scene) if relation != "inside" and rng.random() < 0.4 else scene
