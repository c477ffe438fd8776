"""The frames of the training prompts, each with places for what it names.

A frame of a sentence joins a phrase and the background: {x} the phrase, {c} the colour of the background,
{ac} the colour with an article, {g} a word for the background. The phrase describes one element, two or a
word. Frames of two elements have places for both, {a} and {b}; {r} is a relation of one to the other. Frames
of words have places for the word, {w}, and its colour, {k}.

Held-out frames are never part of a training prompt. All their words are known from other frames.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Frames:
    """Frames of one kind."""

    trained: tuple[str, ...]
    held_out: tuple[str, ...]

    def of(self, measuring: bool) -> tuple[str, ...]:
        return self.held_out if measuring else self.trained


# The most usual frames, which are a third of the training prompts.
USUAL = ("{x} on {ac} {g}", "{x} on {c}", "{x}, {c} {g}", "{ac} {g} with {x}", "on {ac} {g}, {x}")
SENTENCES = {
    "object first": Frames(
        (
            "{x} on {ac} {g}",
            "{x} on {c}",
            "{x}, {c} {g}",
            "{x} on a plain {c} {g}",
            "{x} on a solid {c} {g}",
            "{x} on an all {c} {g}",
            "{x} against {ac} {g}",
            "{x} against {c}",
            "{x} over {ac} {g}",
            "{x} over {c}",
            "{x} with {ac} {g}",
            "{x}. the {g} is {c}",
            "{x}, the {g} is {c}",
            "{x} and the {g} should be {c}",
            "{x}. {c} {g}",
            "{x}, {g}: {c}",
            "{x} in front of {ac} {g}",
            "{x} in front of {c}",
            "{x} and {ac} {g}",
            "{x} on top of {ac} {g}",
            "{x}, and behind it {c}",
            "{x} with {c} all around it",
            "{x}, everything else is {c}",
            "{x}, and the rest {c}",
            "{x} surrounded by {c}",
            "{x} on a {g} in {c}",
            "{x} on a {g} that is {c}",
            "{x} painted on {ac} {g}",
            "{x} is shown on {c}",
            "{x} and nothing but {c} around it",
        ),
        (
            "{x} with {c} behind it",
            "{x}, and behind it {ac} {g}",
            "{x} on a {g} painted {c}",
            "{x}, the rest is {c}",
            "{x} shown against {ac} {g}",
            "{x} while the {g} is {c}",
        ),
    ),
    "background first": Frames(
        (
            "on {ac} {g}, {x}",
            "{ac} {g} with {x}",
            "on {c}, {x}",
            "{c} {g}, {x}",
            "{ac} {g} with {x} on it",
            "{ac} {g} and {x}",
            "{ac} {g} and {x} in front of it",
            "{ac} {g} showing {x}",
            "{ac} {g} that shows {x}",
            "{ac} {g}; on top, {x}",
            "a solid {c} {g} behind {x}",
            "on {ac} {g} there is {x}",
            "on a plain {c} {g}, {x}",
            "against {ac} {g}, {x}",
            "with {ac} {g}, {x}",
            "in front of {ac} {g}, {x}",
            "the {g} is {c} and there is {x} on it",
            "the {g} is {c}. {x}",
            "the {g} is {c} while the subject is {x}",
            "the {g} should be {c}, and {x} in front",
            "{g}: {c}. {x}",
            "{c} behind {x}",
            "{c} all around {x}",
            "all {c} with {x}",
            "everything is {c} except {x}",
            "everything {c}, and {x}",
        ),
        (
            "{ac} {g}, and in front of it {x}",
            "against {c} there is {x}",
            "the {g} should be {c} with {x} on it",
            "on a {g} that is {c}, {x}",
            "a {g} in {c} with {x} on it",
            "the {g} is {c}; in front there is {x}",
        ),
    ),
    "command": Frames(
        (
            "make the {g} {c} and put {x} on it",
            "make {x} with {c} around it",
            "paint the {g} {c}, then draw {x}",
            "fill the {g} with {c} and add {x}",
            "put {x} on {ac} {g}",
            "put {x} in front of {c}",
            "use {ac} {g} and draw {x} on it",
            "use {c} as the {g} for {x}",
            "set the {g} to {c} and show {x}",
            "start with {ac} {g} and add {x}",
            "color the {g} {c} and place {x} on it",
            "draw {x} and make the {g} {c}",
            "draw {x}, then fill the {g} with {c}",
            "draw on {c}: {x}",
            "place {x} on {c}",
            "add {x} to {ac} {g}",
            "take {ac} {g} and paint {x} on it",
            "let the {g} be {c} and draw {x}",
            "keep the {g} {c} and draw {x} in front",
        ),
        (
            "make the {g} {c} and add {x}",
            "use {c} for the {g} and draw {x}",
            "draw {x} and use {c} for the rest",
            "fill the {g} with {c}, then put {x} on it",
            "place {x} in front of {ac} {g}",
        ),
    ),
    "polite": Frames(
        (
            "could you draw {x} on {ac} {g}?",
            "could you please make the {g} {c} and draw {x}?",
            "can you make {x} with {ac} {g}, please?",
            "would you please paint {x} on {ac} {g}?",
            "i would like {x} on {c}, please",
            "i need {x} and {ac} {g}",
            "i'd like {ac} {g} with {x}",
            "may i have {x} on {c}?",
            "please put {x} on {c}",
            "thanks for {x} in front of {ac} {g}",
        ),
        (
            "can you please draw {x} against {ac} {g}?",
            "i would like {ac} {g} and {x} on it, please",
            "could i have {x} on {c}?",
        ),
    ),
    "fragment": Frames(
        (
            "{x} - {c} {g}",
            "{x} / {c} {g}",
            "{x} ({c} {g})",
            "{x} + {c} {g}",
            "{x}; {g} {c}",
            "{x}, on {c}",
            "{c} {g} + {x}",
            "{c} {g}: {x}",
            "{c} {g} / {x}",
            "subject: {x}; {g}: {c}",
            "{g} = {c}, {x}",
        ),
        ("{g}: {c}; subject: {x}", "{x}; {c} {g}", "{c} {g} - {x}", "{x} ({g}: {c})"),
    ),
}
# Relation of {a} to {b}: {a} is the left, upper or inner element.
TWO = {
    "left": Frames(
        (
            "{a} on the left and {b} on the right",
            "{b} on the right and {a} on the left",
            "on the left {a}, on the right {b}",
            "on the right {b}, on the left {a}",
            "left: {a}, right: {b}",
            "right: {b}, left: {a}",
            "{a} and {b}",
            "{a} and {b} side by side",
            "{a} next to {b}",
            "{a} beside {b}",
            "{b} with {a} to its left",
            "{b} and on its left {a}",
            "{a} with {b} to its right",
        ),
        ("on the right {b} and on the left {a}", "{a} and on its right {b}"),
    ),
    "above": Frames(
        (
            "{a} at the top and {b} at the bottom",
            "{b} at the bottom and {a} at the top",
            "at the top {a}, at the bottom {b}",
            "at the bottom {b}, at the top {a}",
            "top: {a}, bottom: {b}",
            "bottom: {b}, top: {a}",
        ),
        ("at the bottom {b} and at the top {a}", "at the top {a} and at the bottom {b}"),
    ),
    "inside": Frames(
        (
            "{b} with {a} inside",
            "{b} with {a} in the middle",
            "{b} containing {a}",
            "{b} that contains {a}",
            "{b} around {a}",
            "{a} surrounded by {b}",
        ),
        ("{b} and {a} inside", "{b} all around {a}"),
    ),
}
# Frames of any relation.
RELATED = Frames(
    (
        "{a} {r} {b}",
        "{a} is {r} {b}",
        "{a} placed {r} {b}",
        "{a}, {r} {b}",
        "{a}; it is {r} {b}",
        "{r} {b} is {a}",
        "{r} {b}, {a}",
        "there is {a} {r} {b}",
        "two things: {a} {r} {b}",
        "{b} with {a} {r} it",
        "{b} and {r} it {a}",
        "{b}, {r} it is {a}",
    ),
    ("{a} that is {r} {b}", "{r} {b} there is {a}", "{a}, and it is {r} {b}", "{b} and {r} it there is {a}"),
)
WORDS = Frames(
    (
        "the word {w} in {k}",
        "the word {w} written in {k}",
        "the word {w}, {k}",
        "the {k} word {w}",
        "the text {w} in {k}",
        "the text {w} in {k} letters",
        "the letters {w} in {k}",
        "the name {w} in {k}",
        "{w} in {k}",
        "{w} in {k} letters",
        "{w} written in {k}",
        "{w}, spelled in {k}",
        "{k} text saying {w}",
        "{k} text {w}",
        "{k} letters spelling {w}",
        "{k} lettering: {w}",
        "a sign that says {w} in {k}",
        "a logo saying {w} in {k}",
    ),
    (
        "the word {w} in {k} letters",
        "the text {w}, {k}",
        "{k} text: {w}",
        "the word {w} spelled in {k}",
        "a sign saying {w} in {k}",
    ),
)
# A letter or word whose colour is not named is black, or white on black.
BARE_WORDS = ("{w}", "{w}", "the word {w}", "word {w}", "the text {w}", "text: {w}", "a sign that says {w}")
