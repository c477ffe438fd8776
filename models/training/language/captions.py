"""Writes structured captions of scenes."""

import json
import random
from typing import Any

from models.training.language.frames import USUAL
from models.training.language.sentences import fill
from models.training.language.vocabulary import OPENINGS
from models.training.language.wording import (
    described,
    letter_phrase,
    phrase,
    pick_colour,
    pick_size,
    place_phrase,
    word_phrase,
)
from models.training.scenes import COLOURS, Element, Scene


def hexadecimal(colour: str) -> str:
    """A palette colour as #RRGGBB."""
    return "#{:02X}{:02X}{:02X}".format(*COLOURS[colour])


def element_desc(rng: random.Random, element: Element) -> str:
    """The `desc` of an element."""
    colour = pick_colour(rng, element.colour)
    size = pick_size(rng, element.size)
    if element.kind == "word":
        text = word_desc(rng, element, colour)
    elif element.kind == "letter":
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
        text = phrase(rng, element)
    if element.place:
        text += " " + place_phrase(rng, element.place)
    return text[0].upper() + text[1:] if rng.random() < 0.25 else text


def word_desc(rng: random.Random, element: Element, colour: str) -> str:
    """The `desc` of a word."""
    makes = (f"{colour} text", f"{colour} letters", f"bold {colour} text, sans-serif", f"{colour}")
    return word_phrase(rng, element) if rng.random() < 0.3 else rng.choice(makes)


def element_entry(rng: random.Random, element: Element) -> dict[str, Any]:
    """One entry of `elements`, with its keys in schema order."""
    as_text = element.kind != "shape" and rng.random() < 0.85
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
    """A `desc` that names the element, also if it is a letter."""
    if element.kind == "letter":
        return letter_phrase(rng, element, pick_colour(rng, element.colour), "")
    return word_phrase(rng, element) if element.kind == "word" else element_desc(rng, element)


def style(rng: random.Random, scene: Scene) -> dict[str, Any]:
    """The optional `style_description`, with its keys in schema order."""
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
        colours = (scene.background, *(element.colour for element in scene.elements))
        made["color_palette"] = [hexadecimal(colour) for colour in dict.fromkeys(colours)]
    return made


def background_entry(rng: random.Random, scene: Scene) -> str:
    """The `background` of a caption."""
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
    """The `high_level_description` of a caption."""
    text = described(rng, scene)
    if rng.random() < 0.7:
        text = fill(rng, rng.choice(USUAL), text, pick_colour(rng, scene.background))
    if rng.random() < 0.15:
        text = rng.choice(OPENINGS[:5]) + text
    if rng.random() < 0.3:
        text = text[0].upper() + text[1:]
    return text + ("." if rng.random() < 0.3 else "")


def structured(rng: random.Random, scene: Scene) -> str:
    """A structured caption as the compact JSON that the server passes to the model."""
    made: dict[str, Any] = {}
    if rng.random() < (0.5 if scene.other else 0.75):
        made["high_level_description"] = summary(rng, scene)
    if rng.random() < (0.04 if scene.other else 0.12):
        made["style_description"] = style(rng, scene)
    made["compositional_deconstruction"] = {
        "background": background_entry(rng, scene),
        "elements": [element_entry(rng, element) for element in scene.elements],
    }
    return json.dumps(made, separators=(",", ":"), ensure_ascii=False)
