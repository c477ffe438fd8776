"""Frames of sentences that join a clause about the background with one about what is on it, in either order.

They teach what belongs together, whatever the frame. Those that contain the words of a held-out frame are
left out.
"""

import random
import re

from models.training.language.frames import SENTENCES

GROUND_FIRST = (
    "{ac} {g}",
    "{c} {g}",
    "on {ac} {g}",
    "on {c}",
    "against {ac} {g}",
    "against {c}",
    "with {ac} {g}",
    "a {g} in {c}",
    "a {g} that is {c}",
    "a {g} painted {c}",
    "the {g} is {c}",
    "the {g} is {c}",
    "the {g} should be {c}",
    "the {g} in {c}",
    "everything is {c}",
    "{g}: {c}",
    "{g} {c}",
    "make the {g} {c}",
    "paint the {g} {c}",
    "fill the {g} with {c}",
    "use {ac} {g}",
    "use {c} for the {g}",
)
THEN_ELEMENT = (
    "{x}",
    "{x} on it",
    "{x} in front",
    "there is {x}",
    "there is {x} on it",
    "in front {x}",
    "in front there is {x}",
    "in front of it {x}",
    "on top {x}",
    "on it {x}",
    "it shows {x}",
    "subject: {x}",
    "draw {x}",
    "add {x}",
    "put {x} on it",
    "place {x} in front",
)
ELEMENT_FIRST = (
    "{x}",
    "{x}",
    "{x}",
    "there is {x}",
    "draw {x}",
    "show {x}",
    "put {x} in front",
    "subject: {x}",
)
THEN_GROUND = (
    "{ac} {g}",
    "{c} {g}",
    "on {ac} {g}",
    "against {ac} {g}",
    "the {g} is {c}",
    "the {g} should be {c}",
    "the {g} in {c}",
    "a {g} in {c}",
    "a {g} that is {c}",
    "the rest is {c}",
    "the rest {c}",
    "everything else is {c}",
    "behind it {ac} {g}",
    "behind it {c}",
    "{c} behind it",
    "{c} all around it",
    "{g}: {c}",
    "{g} {c}",
    "make the {g} {c}",
    "use {c} for the {g}",
    "use {c} for the rest",
    "paint the rest {c}",
)
JOINTS = (", ", ", ", ", ", "; ", ". ", " - ", " / ", " + ", ": ", " and ", ", and ", " while ", " ")


def words(frame: str) -> str:
    """The words and places of a frame."""
    return " ".join(re.findall(r"{?[a-z]+}?", frame))


def matches(frames: tuple[str, ...]) -> re.Pattern[str]:
    """Matches the words of a frame, also with other words around {x}."""
    patterns = (re.escape(words(frame)).replace(re.escape("{x}"), ".*{x}.*") for frame in frames)
    return re.compile("|".join(patterns))


HELD_OUT = matches(tuple(frame for group in SENTENCES.values() for frame in group.held_out))


def compose(rng: random.Random) -> tuple[str, str]:
    """The kind and the text of a random frame of two clauses."""
    while True:
        kind = rng.choice(("object first", "background first"))
        first, second = (
            (ELEMENT_FIRST, THEN_GROUND) if kind == "object first" else (GROUND_FIRST, THEN_ELEMENT)
        )
        frame = rng.choice(first) + rng.choice(JOINTS) + rng.choice(second)
        if not HELD_OUT.fullmatch(words(frame)):
            return kind, frame
