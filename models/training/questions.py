"""What the text model must recognise in a caption: questions about the scene, and the right answers.

The five tokens that follow every prompt answer them: one for each part of the scene, and the last one for the
background. A part is an element or a letter of a word, so that all are described alike: the transformers
learn only once what a letter or a colour looks like.
"""

from dataclasses import replace

from models.training.scenes import COLOURS, LETTERS, PLACES, SHAPES, SIZES, Box, Element, Scene

BINS = 16
NAMES = ("", *SHAPES, *LETTERS)
MOST_PARTS = 4
# relation -> the places of both elements
PAIRS = {
    "left": ("left half", "right half"),
    "above": ("upper half", "lower half"),
    "inside": ("inner", "outer"),
}
SPELLED = tuple(f"{k} of {n}" for n in range(2, MOST_PARTS + 1) for k in range(1, n + 1))
ANYWHERE = ("", "box", *PLACES, *(place for pair in PAIRS.values() for place in pair), *SPELLED)
# question -> number of possible answers
PART = {
    "name": len(NAMES),
    "colour": len(COLOURS),
    "place": len(ANYWHERE),
    "size": len(SIZES),
    "cx": BINS,
    "cy": BINS,
    "side": BINS,
}
WHOLE = {"background": len(COLOURS)}
ALL = [*(f"{question} {part}" for part in range(1, MOST_PARTS + 1) for question in PART), *WHOLE]


def parts(scene: Scene) -> list[Element]:
    """The elements of a scene, with the letters of a word instead of the word."""
    if scene.element.kind == "word":
        return letters(scene.element)
    if scene.other and not scene.other.bbox:
        places = PAIRS[scene.relation]
        return [replace(each, place=place) for each, place in zip(scene.elements, places, strict=True)]
    return list(scene.elements)


def letters(word: Element) -> list[Element]:
    """The letters of a word, each with its place in it, and its share of the word's box."""
    count = len(word.name)
    return [
        replace(
            word, kind="letter", name=letter, place=f"{k + 1} of {count}", bbox=share(word.bbox, k, count)
        )
        for k, letter in enumerate(word.name)
    ]


def share(box: Box | None, index: int, count: int) -> Box | None:
    """One of so many columns of a box."""
    if box is None:
        return None
    y0, x0, y1, x1 = box
    wide = (x1 - x0) / count
    return y0, round(x0 + index * wide), y1, round(x0 + (index + 1) * wide)


def bin_of(fraction: float) -> int:
    """The bin of a fraction 0..1 among BINS equal ones."""
    return max(0, min(BINS - 1, int(fraction * BINS)))


def geometry(element: Element) -> list[int]:
    """The bins of the centre and side of an element's box; -1 without a box."""
    if not element.bbox:
        return [-1, -1, -1]
    y0, x0, y1, x1 = (v / 1000 for v in element.bbox)
    return [bin_of((x0 + x1) / 2), bin_of((y0 + y1) / 2), bin_of(min(y1 - y0, x1 - x0))]


def about(part: Element | None) -> list[int]:
    """The answers for a part; if there is none, its name is empty and nothing else applies."""
    if part is None:
        return [0, *[-1] * (len(PART) - 1)]
    place = part.place if part.place in SPELLED or not part.bbox else "box"
    named = [NAMES.index(part.name), list(COLOURS).index(part.colour), ANYWHERE.index(place)]
    return [*named, list(SIZES).index(part.size), *geometry(part)]


def answers(scene: Scene) -> list[int]:
    """The right answer to each question of ALL; -1 if it does not apply."""
    found = parts(scene)
    padded = [*found, *[None] * (MOST_PARTS - len(found))]
    return [*(answer for part in padded for answer in about(part)), list(COLOURS).index(scene.background)]
