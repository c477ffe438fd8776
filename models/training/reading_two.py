"""Recognises two elements, their relation, and words."""

from itertools import permutations

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from models.training.reading import (
    Part,
    Reading,
    background_of,
    box_of,
    components,
    nearest_colour,
    read_image,
    read_name,
    to_pixels,
)
from models.training.scenes import COLOURS, WORD_TILES, Element, Scene
from models.training.words import SIDE

LEAST = 0.001  # fraction of the image that the core of a part covers
CENTRE = 0.1  # tolerance of a box's centre, as a fraction of the side


def shrunk(mask: Tensor) -> Tensor:
    """The mask (H, W) without two pixels at its edges, which have mixed colours."""
    return -F.max_pool2d(-F.pad(mask.float(), (2, 2, 2, 2), value=1.0)[None], 5, 1)[0] > 0


def grown(core: Tensor, mask: Tensor) -> Tensor:
    """The pixels of a mask (H, W) that are connected to its core."""
    reached = (core & mask).float()
    while True:
        spread = F.max_pool2d(reached[None], 3, 1, 1)[0] * mask
        if torch.equal(spread, reached):
            return reached > 0
        reached = spread


def cores(pixels: Tensor) -> list[tuple[str, Tensor]]:
    """The colours of at most two parts and their pixels (H, W) away from the edges, largest first."""
    palette = torch.tensor(list(COLOURS.values())).float()
    nearest = torch.cdist(pixels.view(-1, 3), palette).argmin(1).view(pixels.shape[:2])
    background = nearest_colour(background_of(pixels))
    found = [(name, shrunk(nearest == i)) for i, name in enumerate(COLOURS) if name != background]
    found = [(name, core) for name, core in found if core.sum() > LEAST * core.numel()]
    found.sort(key=lambda each: -int(each[1].sum()))
    if len(found) == 1:  # of the same colour
        ((name, core),) = found
        return [(name, piece) for piece in components(core)[:2]]
    return found[:2]


def read_two(image: Image.Image) -> Reading:
    """The background and at most two parts, of different colours or apart from each other."""
    pixels = to_pixels(image)
    background = background_of(pixels)
    found = cores(pixels)
    colours = torch.stack([background, *(torch.tensor(COLOURS[name]).float() for name, _ in found)])
    distances = torch.cdist(pixels.view(-1, 3), colours)
    nearest = (distances <= distances.amin(1, keepdim=True)).T.view(-1, *pixels.shape[:2])
    masks = [grown(core, near) for (_, core), near in zip(found, nearest[1:], strict=True)]
    parts = [
        Part(name, mask, box_of(mask)) for (name, _), mask in zip(found, masks, strict=True) if mask.any()
    ]
    return Reading(nearest_colour(background), tuple(parts))


def within(inner: Part, outer: Part) -> bool:
    """Whether the centre of a part lies in a larger one's box."""
    y0, x0, y1, x1 = outer.box
    y, x = inner.centre
    height, width = (inner.box[2] - inner.box[0], inner.box[3] - inner.box[1])
    return y0 < y < y1 and x0 < x < x1 and height < y1 - y0 and width < x1 - x0


def relation_of(first: Part, second: Part) -> str:
    """The relation of one part to the other: left, right, above, below, inside or around."""
    if within(first, second):
        return "inside"
    if within(second, first):
        return "around"
    dy, dx = (a - b for a, b in zip(second.centre, first.centre, strict=True))
    if abs(dx) >= abs(dy):
        return "left" if dx > 0 else "right"
    return "above" if dy > 0 else "below"


def covered(outer: Part, inner: Part) -> Part:
    """The outer part with what the inner one covers."""
    around = F.max_pool2d(inner.mask.float()[None], 7, 1, 3)[0] > 0
    touching = (around & outer.mask).sum() > 0.5 * (around & ~inner.mask).sum()
    return Part(outer.colour, outer.mask | inner.mask, outer.box) if touching else outer


def shows(part: Part, element: Element) -> bool:
    return part.colour == element.colour and read_name(part, element.kind) == element.name


def stands(part: Part, element: Element) -> bool:
    """Whether a part is in the middle of its element's box."""
    assert element.bbox
    y0, x0, y1, x1 = (v / 1000 for v in element.bbox)
    y, x = part.centre
    return abs(y - (y0 + y1) / 2) <= CENTRE and abs(x - (x0 + x1) / 2) <= CENTRE


def shows_both(reading: Reading, scene: Scene) -> dict[str, bool]:
    """Whether an image shows both elements of a scene, and whether they stand as they should.

    Elements with boxes must be in them, and others have their relation.
    """
    assert scene.other
    best = {"elements": False, "relation": False}
    for first, second in permutations(reading.parts[:2], 2):
        relation = relation_of(first, second)
        outer = covered(second, first) if relation == "inside" else second
        boxed = scene.element.bbox and scene.other.bbox
        placed = stands(first, scene.element) and stands(second, scene.other) if boxed else False
        right = {
            "elements": shows(first, scene.element) and shows(outer, scene.other),
            "relation": placed if boxed else relation == scene.relation,
        }
        best = max(best, right, key=lambda each: tuple(each.values()))
    return best | {"both": all(best.values())}


def read_word(image: Image.Image) -> str:
    """The letters of a word, from left to right. Each is as wide as it is high, in whole tiles."""
    reading = read_image(image)
    if not reading.parts:
        return ""
    part = reading.parts[0]
    columns = part.mask.any(0).nonzero().flatten()
    tile = SIDE // WORD_TILES
    start = int(columns[0]) // tile * tile
    letters = round((int(columns[-1]) + 1 - start) / SIDE)
    cells = [part.mask[:, start + i * SIDE : start + (i + 1) * SIDE] for i in range(letters)]
    return "".join(
        read_name(Part(part.colour, cell, box_of(cell)), "letter") if cell.any() else " " for cell in cells
    )
