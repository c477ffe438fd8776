"""Writes plain prompts of scenes in many wordings."""

import random

from models.training.scenes import Element, Scene
from models.training.vocabulary import (
    ADJECTIVES,
    COLOUR_WORDS,
    CORNER_WORDS,
    ENDINGS,
    GROUNDS,
    GROUNDS_FIRST,
    OPENINGS,
    PLACE_WORDS,
    SHAPE_WORDS,
    SIZE_WORDS,
    STRANGE,
)


def article(phrase: str) -> str:
    """The phrase with an indefinite article."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def pick_colour(rng: random.Random, colour: str, variety: float = 0.25) -> str:
    """A word for the colour, mostly its name."""
    return rng.choice(COLOUR_WORDS[colour]) if rng.random() < variety else colour


def letter_phrase(rng: random.Random, element: Element, colour: str, size: str) -> str:
    """A phrase such as "the letter K in green"."""
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
    """A phrase such as "a big red circle"."""
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
    """A phrase such as "in the top left corner"."""
    if place in PLACE_WORDS:
        return rng.choice(PLACE_WORDS[place])
    vertical, horizontal = place.split()
    if rng.random() < 0.3:
        vertical = {"top": "upper", "bottom": "lower"}[vertical]
    joint = rng.choice((" ", " ", " ", "-"))
    return rng.choice(CORNER_WORDS).format(vertical + joint + horizontal)


def background_unsaid(rng: random.Random, scene: Scene) -> bool:
    """Whether to omit the background: sometimes if it is white, or black behind a white element."""
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
    """A plain prompt as users write them."""
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
