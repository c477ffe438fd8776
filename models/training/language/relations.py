"""Frames of two elements, composed of a clause about each, without those of the words of held-out frames."""

import random

from models.training.language.clauses import matches, words
from models.training.language.frames import RELATED, TWO

JOINTS = (" and ", ", ", ", and ", "; ", " - ", " with ", ". ", " / ")
SIDES = {
    "left": (
        ("on the left", "on the right"),
        ("at the left", "at the right"),
        ("to the left", "to the right"),
        ("on the left side", "on the right side"),
        ("left", "right"),
    ),
    "above": (
        ("at the top", "at the bottom"),
        ("on top", "below"),
        ("in the upper part", "in the lower part"),
        ("above", "below"),
        ("top", "bottom"),
    ),
}
BEFORE = ("", "", " there is", " is", ":", " put", " draw")  # between a side and an element
INSIDE = ("inside", "inside it", "in it", "in the middle", "in the middle of it", "within it")
RELATES = ("", "", "is ", "is placed ", "placed ", "it is ", "put it ", "draw it ", "it should be ")


def one_side_each(rng: random.Random, relation: str) -> str:
    """Such as "on the left {a}, on the right {b}"."""
    sides = rng.choice(SIDES[relation])
    before, is_side_first = rng.choice(BEFORE), rng.random() < 0.6
    clauses = [
        f"{side}{before} {{{each}}}" if is_side_first else f"{{{each}}} {side}"
        for each, side in zip("ab", sides, strict=True)
    ]
    rng.shuffle(clauses)
    return rng.choice(JOINTS).join(clauses)


def containing(rng: random.Random) -> str:
    """Such as "{b} and inside it {a}"."""
    place, joint = rng.choice(INSIDE), rng.choice(JOINTS)
    if rng.random() < 0.5:
        return f"{{b}}{joint}{{a}} {place}"
    return f"{{b}}{joint}{place}{rng.choice(BEFORE)} {{a}}"


def relating(rng: random.Random) -> str:
    """Such as "{b}; {r} it is {a}"."""
    joint, chance = rng.choice(JOINTS), rng.random()
    if chance < 0.3:
        return f"{{a}}{rng.choice((' ', joint))}{rng.choice(RELATES)}{{r}} {{b}}"
    if chance < 0.6:
        return f"{{r}} {{b}}{rng.choice(('', ',', ':', ';'))}{rng.choice(BEFORE).strip(':')} {{a}}"
    if chance < 0.8:
        return f"{{b}}{joint}{{r}} it{rng.choice(BEFORE)} {{a}}"
    return f"{{b}}{joint}{{a}} {{r}} it"


HELD_OUT = matches(tuple(frame for group in (RELATED, *TWO.values()) for frame in group.held_out))


def compose(rng: random.Random, relation: str, is_any: bool) -> str:
    """A random frame of the relation of {a} to {b}; if `is_any`, of any relation, {r}."""
    while True:
        if is_any:
            frame = relating(rng)
        else:
            frame = containing(rng) if relation == "inside" else one_side_each(rng, relation)
        if not HELD_OUT.fullmatch(words(frame)):
            return frame
