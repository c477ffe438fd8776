"""Writes phrases that name elements, colours and places."""

import random
from string import ascii_lowercase

from models.training.language import relations
from models.training.language.frames import BARE_WORDS, RELATED, TWO, WORDS, Frames
from models.training.language.vocabulary import (
    ADJECTIVES,
    COLOUR_WORDS,
    CORNER_WORDS,
    DETERMINERS,
    PLACE_WORDS,
    RELATION_WORDS,
    SHAPE_WORDS,
    SIZE_WORDS,
    STRANGE,
)
from models.training.pairs import INVERSE, flipped
from models.training.scenes import Element, Scene

COMPOSED_TWO = 0.5  # fraction of composed frames of two elements


def article(phrase: str) -> str:
    """The phrase with an indefinite article."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def determined(rng: random.Random, phrase: str) -> str:
    """The phrase with an article or a number, or without."""
    chance = rng.random()
    if chance < 0.62:
        return article(phrase)
    return phrase if chance < 0.76 else f"{rng.choice(DETERMINERS)} {phrase}"


def pick_colour(rng: random.Random, colour: str, variety: float = 0.25) -> str:
    """A word for the colour, mostly its name."""
    return rng.choice(COLOUR_WORDS[colour]) if rng.random() < variety else colour


def strange_word(rng: random.Random) -> str:
    """A word that means nothing to the model: one of a list, or any letters."""
    if rng.random() < 0.5:
        return rng.choice(STRANGE).lower()
    return "".join(rng.choices(ascii_lowercase, k=rng.randint(5, 9)))


def pick_size(rng: random.Random, size: str) -> str:
    """A word for the size, with a space after it."""
    return rng.choice(SIZE_WORDS[size]) + " " if size else ""


def quoted(rng: random.Random, text: str) -> str:
    """The text, sometimes in quotes."""
    return rng.choice(("{}", "{}", "{}", '"{}"', '"{}"', "'{}'")).format(text)


def letter_phrase(rng: random.Random, element: Element, colour: str, size: str) -> str:
    """A phrase such as "the letter K in green"."""
    name = quoted(rng, element.name)
    word = rng.choice(("letter",) * 4 + ("capital letter", "uppercase letter", "capital"))
    return rng.choice(
        (
            f"the {size}{word} {name} in {colour}",
            f"the {size}{word} {name} in {colour}",
            f"the {size}{colour} {word} {name}",
            determined(rng, f"{size}{colour} {word} {name}"),
            determined(rng, f"{size}{colour} {word} {name}"),
            determined(rng, f"{size}{colour} {name}"),
            determined(rng, f"{size}{word} {name} in {colour}"),
            f"{size}{word} {name}, {colour}",
            f"{size}{word} {name} in {colour}",
            f"{size}{colour} {word} {name}",
            f"the {size}{word} {name} written in {colour}",
            determined(rng, f"{size}{name} in {colour}"),
            f"{size}{name} in {colour}",
            f"the text {name} in {size}{colour} letters",
            f"{size}{colour} text {name}",
            f"the word {name} in {colour}",
        )
    )


def uncoloured_letter(rng: random.Random, element: Element, size: str) -> str:
    """A phrase for a letter of the usual colour."""
    name = quoted(rng, element.name)
    makes = ("{}", "{}", "letter {}", "the letter {}", "a letter {}", "capital {}", "a capital {}", "one {}")
    text = rng.choice(makes).format(name)
    return size + text if size and text[:2] not in ("a ", "th", "on") else text


def shape_phrase(rng: random.Random, element: Element, colour: str, size: str) -> str:
    """A phrase such as "a big red circle"; with an empty colour, one such as "a big circle"."""
    word = rng.choice(SHAPE_WORDS[element.name]) if rng.random() < 0.35 else element.name
    extra = rng.choice(ADJECTIVES) + " " if rng.random() < 0.12 else ""
    if rng.random() < 0.05:
        extra = strange_word(rng) + " "
    if not colour:
        return determined(rng, f"{size}{extra}{word}")
    usual = f"{size}{extra}{colour} {word}"
    makes: tuple[str, ...] = (
        *(usual,) * 10,
        f"{size}{extra}{word} in {colour}",
        f"{size}{extra}{word} that is {colour}",
    )
    makes += (f"{size}{word} colored {colour}", f"{extra}{colour} {size}{word}", f"{colour} {extra}{word}")
    return determined(rng, rng.choice(makes))


def phrase(rng: random.Random, element: Element, coloured: bool = True) -> str:
    """A noun phrase for a shape or letter; without its colour if not `coloured`."""
    size = pick_size(rng, element.size)
    colour = pick_colour(rng, element.colour) if coloured else ""
    if element.kind == "letter":
        return (
            letter_phrase(rng, element, colour, size) if coloured else uncoloured_letter(rng, element, size)
        )
    return shape_phrase(rng, element, colour, size)


def word_phrase(rng: random.Random, element: Element, coloured: bool = True, measuring: bool = False) -> str:
    """A phrase such as "the word CAT in red"."""
    frame = rng.choice(WORDS.of(measuring) if coloured else BARE_WORDS)
    return frame.format(w=quoted(rng, element.name), k=pick_colour(rng, element.colour))


def pick_two(rng: random.Random, relation: str, frames: Frames, measuring: bool) -> str:
    """A frame of two elements: one of these, or a composed one."""
    if measuring or rng.random() >= COMPOSED_TWO:
        return rng.choice(frames.of(measuring))
    return relations.compose(rng, relation, is_any=frames is RELATED)


def related(rng: random.Random, scene: Scene, measuring: bool = False) -> str:
    """A phrase for two elements and their relation."""
    assert scene.other
    if scene.relation in TWO and rng.random() < 0.4:
        frame = pick_two(rng, scene.relation, TWO[scene.relation], measuring)
    else:
        scene = flipped(scene) if scene.relation in INVERSE and rng.random() < 0.5 else scene
        frame = pick_two(rng, scene.relation, RELATED, measuring)
    assert scene.other
    parts = (phrase(rng, each) for each in (scene.element, scene.other))
    return frame.format(**dict(zip("ab", parts, strict=True)), r=rng.choice(RELATION_WORDS[scene.relation]))


def place_phrase(rng: random.Random, place: str) -> str:
    """A phrase such as "in the top left corner"."""
    if place in PLACE_WORDS:
        return rng.choice(PLACE_WORDS[place])
    vertical, horizontal = place.split()
    if rng.random() < 0.3:
        vertical = {"top": "upper", "bottom": "lower"}[vertical]
    joint = rng.choice((" ", " ", " ", "-"))
    return rng.choice(CORNER_WORDS).format(vertical + joint + horizontal)


def placed(rng: random.Random, element: Element, coloured: bool = True) -> str:
    """A phrase for an element and its place."""
    what = phrase(rng, element, coloured)
    if not element.place:
        return what
    return what + rng.choice((" ", " ", " ", ", ")) + place_phrase(rng, element.place)


def described(rng: random.Random, scene: Scene, coloured: bool = True, measuring: bool = False) -> str:
    """A phrase for all that a scene shows; with frames that are held out if `measuring`."""
    if scene.other:
        return related(rng, scene, measuring)
    if scene.element.kind == "word":
        return word_phrase(rng, scene.element, coloured, measuring)
    return placed(rng, scene.element, coloured)
