"""What the text model must recognise in a caption: questions about the scene, and the right answers.

The three tokens that follow every prompt answer them: the first those about the first element, the second
those about the other element and the relation, or half of a word, and the third the others.
"""

from models.training.scenes import COLOURS, LETTERS, PLACES, SHAPES, SIZES, Element, Scene

BINS = 16
NAMES = (*SHAPES, *LETTERS)
KINDS = ("shape", "letter", "word")
RELATIONS = ("", "left", "above", "inside", "boxes")
MOST_LETTERS = 4
GEOMETRY = {"cx": BINS, "cy": BINS, "side": BINS}
# for each token: question -> number of possible answers
QUESTIONS: tuple[dict[str, int], ...] = (
    {
        "kind": len(KINDS),
        "name": len(NAMES),
        "colour": len(COLOURS),
        "place": len(PLACES) + 2,
        "size": len(SIZES),
        **GEOMETRY,
    },
    {
        "relation": len(RELATIONS),
        "other name": len(NAMES),
        "other colour": len(COLOURS),
        **{f"other {name}": count for name, count in GEOMETRY.items()},
        "letter 1": len(LETTERS) + 1,
        "letter 2": len(LETTERS) + 1,
    },
    {"background": len(COLOURS), "letter 3": len(LETTERS) + 1, "letter 4": len(LETTERS) + 1},
)
ALL = [question for each in QUESTIONS for question in each]


def bin_of(fraction: float) -> int:
    """The bin of a fraction 0..1 among BINS equal ones."""
    return max(0, min(BINS - 1, int(fraction * BINS)))


def geometry(element: Element) -> list[int]:
    """The bins of the centre and side of an element's box, if it has one."""
    if not element.bbox:
        return [-1] * len(GEOMETRY)
    y0, x0, y1, x1 = (v / 1000 for v in element.bbox)
    return [bin_of((x0 + x1) / 2), bin_of((y0 + y1) / 2), bin_of(min(y1 - y0, x1 - x0))]


def about_other(scene: Scene) -> list[int]:
    """The relation, and the name, colour and box of the other element."""
    if not scene.other:
        return [0, -1, -1, *[-1] * len(GEOMETRY)]
    relation = "boxes" if scene.other.bbox else scene.relation
    named = [NAMES.index(scene.other.name), list(COLOURS).index(scene.other.colour)]
    return [RELATIONS.index(relation), *named, *geometry(scene.other)]


def spelling(element: Element) -> list[int]:
    """The letters of a word, with an end for each that is missing; -1 if the element is not a word."""
    if element.kind != "word":
        return [-1] * MOST_LETTERS
    letters = [LETTERS.index(letter) for letter in element.name]
    return letters + [len(LETTERS)] * (MOST_LETTERS - len(letters))


def answers(scene: Scene) -> list[int]:
    """The right answer to each question; -1 if it does not apply."""
    element = scene.element
    places = ["", "box", *PLACES]
    letters = spelling(element)
    return [
        KINDS.index(element.kind),
        NAMES.index(element.name) if element.name in NAMES else -1,
        list(COLOURS).index(element.colour),
        places.index("box" if element.bbox else element.place),
        list(SIZES).index(element.size),
        *geometry(element),
        *about_other(scene),
        *letters[:2],
        list(COLOURS).index(scene.background),
        *letters[2:],
    ]
