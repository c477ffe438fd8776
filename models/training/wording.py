"""Says in words what a scene shows: plain sentences of many makes, and structured captions."""

import json
import random
from typing import Any

from models.training.scenes import COLOURS, Element, Scene

SHAPE_WORDS = {
    "circle": ("circle", "circle", "circle", "disc", "disk", "dot", "round circle", "round shape"),
    "square": ("square", "square", "square", "box", "square block"),
    "triangle": ("triangle", "triangle", "triangle", "triangular shape"),
    "star": ("star", "star", "star", "five-pointed star", "star shape"),
    "cross": ("cross", "cross", "cross", "plus sign", "plus"),
    "diamond": ("diamond", "diamond", "diamond", "rhombus", "diamond shape"),
    "heart": ("heart", "heart", "heart", "heart shape", "love heart"),
    "ring": ("ring", "ring", "ring", "hoop", "circle outline", "hollow circle", "donut"),
}
COLOUR_WORDS = {
    "red": ("red", "red", "red", "bright red"),
    "green": ("green", "green", "green", "dark green"),
    "blue": ("blue", "blue", "blue", "bright blue"),
    "yellow": ("yellow", "yellow", "bright yellow"),
    "orange": ("orange", "orange", "bright orange"),
    "purple": ("purple", "purple", "violet"),
    "pink": ("pink", "pink", "light pink"),
    "cyan": ("cyan", "cyan", "turquoise", "light blue"),
    "black": ("black", "black", "black", "jet black", "pitch black"),
    "white": ("white", "white", "white", "pure white"),
    "gray": ("gray", "gray", "grey", "grey"),
    "brown": ("brown", "brown", "dark brown"),
}
SIZE_WORDS = {
    "small": ("small", "small", "little", "tiny"),
    "big": ("big", "big", "large", "large", "huge", "giant"),
}
PLACE_WORDS = {
    "left": (
        "on the left",
        "on the left side",
        "at the left",
        "to the left",
        "on the left-hand side",
        "near the left edge",
    ),
    "right": (
        "on the right",
        "on the right side",
        "at the right",
        "to the right",
        "on the right-hand side",
        "near the right edge",
    ),
    "top": (
        "at the top",
        "near the top",
        "at the top center",
        "on top",
        "in the upper part",
        "at the upper edge",
    ),
    "bottom": (
        "at the bottom",
        "near the bottom",
        "at the bottom center",
        "in the lower part",
        "at the lower edge",
    ),
    "center": (
        "in the center",
        "in the middle",
        "at the center",
        "centered",
        "in the centre",
        "right in the middle",
    ),
}
CORNER_WORDS = (
    "in the {} corner",
    "in the {} corner",
    "at the {}",
    "in the {}",
    "at the {} corner",
    "{}",
    "near the {} corner",
)
ADJECTIVES = (
    "solid",
    "plain",
    "simple",
    "flat",
    "nice",
    "bold",
    "single",
    "clean",
    "bright",
    "colored",
    "perfect",
)
OPENINGS = (
    "an image of ",
    "a picture of ",
    "a drawing of ",
    "an illustration of ",
    "a photo of ",
    "draw ",
    "draw me ",
    "please draw ",
    "paint ",
    "show ",
    "show me ",
    "generate ",
    "create ",
    "make ",
    "i want ",
    "there is ",
    "a poster with ",
    "a card with ",
    "an icon of ",
    "a sign with ",
    "a logo with ",
    "we see ",
    "generate an image of ",
    "create a picture with ",
    "a minimalist poster of ",
    "a simple graphic with ",
)
# Words of which the tokenizer has only pieces: a piece is no letter to be drawn.
STRANGE = (
    *(
        "Wonderful",
        "Watch",
        "Wish",
        "Would",
        "Kindly",
        "Keep",
        "Just",
        "Let",
        "Look",
        "Leave",
        "Place",
        "Print",
    ),
    *("Put", "Produce", "Quickly", "Render", "Sketch", "Say", "See", "Type", "Trace", "Try", "Use", "Unique"),
    *("Visual", "Very", "Xerox", "Yes", "Your", "Zoom", "Another", "Add", "Begin", "Bring", "Be", "Could"),
    *(
        "Compose",
        "Come",
        "Design",
        "Depict",
        "Do",
        "Every",
        "Engrave",
        "Fill",
        "Find",
        "Give",
        "Get",
        "Hello",
    ),
    *("Have", "Help", "Illustrate", "Imagine", "It", "My", "Next", "Now", "Only", "Our"),
)
ENDINGS = (
    ", flat design",
    ", minimal",
    ", simple",
    ", vector art",
    ", high quality",
    ", clean edges",
    ", flat colors",
    ", no shadow",
    " please",
    ", minimalist style",
    ", nothing else",
    ", geometric",
    ", digital art",
)
GROUNDS = (
    " on {a} background",
    " on {a} background",
    " on {a} background",
    " on a plain {c} background",
    " on a solid {c} background",
    " on {c}",
    " on {c}",
    " on {c}",
    " against {a} background",
    " against a {c} backdrop",
    " against {c}",
    " over {a} background",
    " over {c}",
    ", {c} background",
    ", {c} background",
    " with {a} background",
    ". the background is {c}",
    ", the background is {c}",
    ". {c} background",
    ", background: {c}",
    " in front of {a} background",
    " on {a} canvas",
    " on {a} page",
    " on an all {c} background",
)
GROUNDS_FIRST = (
    "on {a} background, {x}",
    "{a} background with {x}",
    "{a} image with {x}",
    "{a} poster with {x}",
    "on {c}, {x}",
    "{c} background, {x}",
    "on {a} background there is {x}",
    "{a} canvas showing {x}",
)


def article(phrase: str) -> str:
    """The phrase with its indefinite article."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def pick_colour(rng: random.Random, colour: str, variety: float = 0.25) -> str:
    """A word for the colour, mostly the plain one."""
    return rng.choice(COLOUR_WORDS[colour]) if rng.random() < variety else colour


def letter_phrase(rng: random.Random, element: Element, colour: str, size: str) -> str:
    """ "the letter K in green" and its like."""
    name = rng.choice(("{}", "{}", "{}", '"{}"', '"{}"', "'{}'")).format(element.name)
    word = rng.choice(
        ("letter", "letter", "letter", "letter", "capital letter", "uppercase letter", "capital")
    )
    return rng.choice(
        (
            f"the {size}{word} {name} in {colour}",
            f"the {size}{word} {name} in {colour}",
            f"the {size}{colour} {word} {name}",
            article(f"{size}{colour} {word} {name}"),
            article(f"{size}{colour} {word} {name}"),
            article(f"{size}{colour} {name}"),
            article(f"{size}{word} {name} in {colour}"),
            f"{size}{word} {name}, {colour}",
            f"{size}{word} {name} in {colour}",
            f"{size}{colour} {word} {name}",
            f"the {size}{word} {name} written in {colour}",
            article(f"{size}{name} in {colour}"),
            f"the text {name} in {size}{colour} letters",
            f"{size}{colour} text {name}",
            f"the word {name} in {colour}",
        )
    )


def shape_phrase(rng: random.Random, element: Element, colour: str, size: str) -> str:
    """ "a big red circle" and its like."""
    word = rng.choice(SHAPE_WORDS[element.name]) if rng.random() < 0.35 else element.name
    extra = rng.choice(ADJECTIVES) + " " if rng.random() < 0.12 else ""
    whole = f"{size}{extra}{colour} {word}"
    return rng.choice(
        (
            *(article(whole),) * 12,
            *(whole,) * 2,
            f"one {whole}",
            f"the {whole}",
            article(f"{size}{extra}{word} in {colour}"),
            article(f"{size}{extra}{word} that is {colour}"),
            article(f"{size}{extra}{word}, {colour}"),
            article(f"{size}{extra}{word} colored {colour}"),
            article(f"{extra}{colour} {size}{word}"),
        )
    )


def phrase(rng: random.Random, element: Element) -> str:
    """A noun phrase for the element."""
    colour = pick_colour(rng, element.colour)
    size = rng.choice(SIZE_WORDS[element.size]) + " " if element.size else ""
    return (letter_phrase if element.kind == "letter" else shape_phrase)(rng, element, colour, size)


def place_phrase(rng: random.Random, place: str) -> str:
    """ "in the top left corner" and its like."""
    if place in PLACE_WORDS:
        return rng.choice(PLACE_WORDS[place])
    vertical, horizontal = place.split()
    if rng.random() < 0.3:
        vertical = {"top": "upper", "bottom": "lower"}[vertical]
    joint = rng.choice((" ", " ", " ", "-"))
    return rng.choice(CORNER_WORDS).format(vertical + joint + horizontal)


def background_unsaid(rng: random.Random, scene: Scene) -> bool:
    """White need not be said, nor black behind something white."""
    usual = "black" if scene.element.colour == "white" else "white"
    return scene.background == usual and rng.random() < 0.4


def sentence(rng: random.Random, scene: Scene) -> str:
    """Element, place and background in one of several orders."""
    what = phrase(rng, scene.element)
    where = place_phrase(rng, scene.element.place) if scene.element.place else ""
    if background_unsaid(rng, scene):
        return f"{what} {where}".strip()
    colour = pick_colour(rng, scene.background)
    words = {"c": colour, "a": article(colour)}
    placed = what + (rng.choice((" ", " ", " ", ", ")) + where if where else "")
    if rng.random() < 0.16:
        return rng.choice(GROUNDS_FIRST).format(x=placed, **words)
    ground = rng.choice(GROUNDS).format(**words)
    if where and rng.random() < 0.4:
        return what + ground + rng.choice((" ", ", ")) + where
    return placed + ground


def plain(rng: random.Random, scene: Scene) -> str:
    """A plain prompt as people write them."""
    text = sentence(rng, scene)
    if rng.random() < 0.2:
        text = rng.choice(OPENINGS) + text
    elif rng.random() < 0.15:
        text = rng.choice(STRANGE) + " " + text
    if rng.random() < 0.08:
        text += rng.choice(ENDINGS)
    if rng.random() < 0.35:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.25:
        text += rng.choice((".", ".", "!"))
    return text


def hexadecimal(colour: str) -> str:
    """The palette's colour as #RRGGBB."""
    return "#{:02X}{:02X}{:02X}".format(*COLOURS[colour])


def element_desc(rng: random.Random, element: Element) -> str:
    """An element's own words in a structured caption."""
    colour = pick_colour(rng, element.colour)
    size = rng.choice(SIZE_WORDS[element.size]) + " " if element.size else ""
    if element.kind == "letter":
        text = rng.choice(
            (
                letter_phrase(rng, element, colour, size),
                f"{size}{colour} letter",
                f"{size}{colour} capital letter",
                f"bold {size}{colour} letter, sans-serif",
                f"{size}{colour} letter {element.name}",
                f"the letter {element.name} in {size}{colour}",
                f"{size}{colour} text",
                f"{size}{colour}",
            )
        )
    else:
        text = shape_phrase(rng, element, colour, size)
    if element.place:
        text += " " + place_phrase(rng, element.place)
    return text[0].upper() + text[1:] if rng.random() < 0.25 else text


def element_entry(rng: random.Random, element: Element) -> dict[str, Any]:
    """One entry of `elements`, keys in the schema's order."""
    as_text = element.kind == "letter" and rng.random() < 0.85
    entry: dict[str, Any] = {"type": "text" if as_text else "obj"}
    if element.bbox:
        entry["bbox"] = list(element.bbox)
    if as_text:
        entry["text"] = element.name
    entry["desc"] = element_desc(rng, element) if as_text else obj_desc(rng, element)
    if rng.random() < 0.2:
        entry["color_palette"] = [hexadecimal(element.colour)]
    return entry


def obj_desc(rng: random.Random, element: Element) -> str:
    """A description that names the element, letters included."""
    if element.kind == "letter":
        return letter_phrase(rng, element, pick_colour(rng, element.colour), "")
    return element_desc(rng, element)


def style(rng: random.Random, scene: Scene) -> dict[str, Any]:
    """The optional `style_description`; keys in the schema's order."""
    made: dict[str, Any] = {
        "aesthetics": rng.choice(("minimal", "clean", "simple, flat", "bold and simple")),
        "lighting": rng.choice(("flat", "even", "none")),
    }
    if rng.random() < 0.3:
        made["photo"] = rng.choice(("plain", "studio", "front view"))
        made["medium"] = "photograph"
    else:
        made["medium"] = rng.choice(("vector", "digital", "graphic design", "illustration"))
        made["art_style"] = rng.choice(("flat design", "geometric", "minimalism", "vector art"))
    if rng.random() < 0.5:
        made["color_palette"] = [hexadecimal(c) for c in (scene.background, scene.element.colour)]
    return made


def background_entry(rng: random.Random, scene: Scene) -> str:
    """The `background` of a structured caption."""
    colour = pick_colour(rng, scene.background)
    makes: tuple[str, ...] = (
        "{}",
        "{}",
        "{} background",
        "plain {}",
        "solid {}",
        "a plain {} background",
        "a {} background",
        "all {}",
    )
    makes += (
        "solid {} background",
        "flat {}",
        "plain {} background",
        "a solid {} backdrop",
        "uniform {}",
        "{} surface",
    )
    text = rng.choice(makes).format(colour)
    return text[0].upper() + text[1:] if rng.random() < 0.2 else text


def summary(rng: random.Random, scene: Scene) -> str:
    """The `high_level_description`."""
    text = phrase(rng, scene.element)
    if rng.random() < 0.7:
        colour = pick_colour(rng, scene.background)
        text += rng.choice(GROUNDS[:12]).format(c=colour, a=article(colour))
    if rng.random() < 0.15:
        text = rng.choice(OPENINGS[:5]) + text
    if rng.random() < 0.3:
        text = text[0].upper() + text[1:]
    return text + ("." if rng.random() < 0.3 else "")


def structured(rng: random.Random, scene: Scene) -> str:
    """A structured caption in the form in which the server passes captions to the model."""
    made: dict[str, Any] = {}
    if rng.random() < 0.75:
        made["high_level_description"] = summary(rng, scene)
    if rng.random() < 0.12:
        made["style_description"] = style(rng, scene)
    made["compositional_deconstruction"] = {
        "background": background_entry(rng, scene),
        "elements": [element_entry(rng, scene.element)],
    }
    return json.dumps(made, separators=(",", ":"), ensure_ascii=False)
