"""Reads prompts by rules of its own, to check that each says what its scene shows."""

import re
from dataclasses import dataclass

from models.training.language.frames import RELATED, SENTENCES, TWO, WORDS
from models.training.language.vocabulary import (
    ADJECTIVES,
    BACKGROUND_WORDS,
    COLOUR_WORDS,
    RELATION_WORDS,
    SHAPE_WORDS,
    SIZE_WORDS,
)
from models.training.scenes import SHAPES

RELATIONS = {
    "left": r"(?:(?:to|on) the )?left (?:side )?of|next to|beside",
    "right": r"(?:(?:to|on) the )?right (?:side )?of",
    "above": r"above|over|on top of|higher than",
    "below": r"below|underneath|under|beneath|lower than",
    "inside": r"inside of|inside|within|in the (?:middle|center) of|surrounded by|in",
}
# how two things, 1 and 2 in the order of the prompt, are related without a relation between or before them
PHRASES = {
    r"1 on the (left|right) and 2 on the (?:left|right)": "12",
    r"on the (left|right) 1(?:,| and) on the (?:left|right) 2": "12",
    r"(left|right): 1, (?:right|left): 2": "12",
    r"1 with 2 to its (left|right)": "21",
    r"1 and on its (left|right) 2": "21",
    r"1 at the (top|bottom) and 2 at the (?:top|bottom)": "12",
    r"at the (top|bottom) 1(?:,| and) at the (?:top|bottom) 2": "12",
    r"(top|bottom): 1, (?:bottom|top): 2": "12",
    r"1 (?:that )?contain(?:s|ing) 2|1 (?:all )?around 2": "around",
    r"1 (?:with 2 inside|with 2 in the middle|and 2 inside)(?! (?:of )?it)": "around",
    r"1 and 2": "left",
}
SYNONYMS = {"top": "above", "bottom": "below"}
INVERSE = {"left": "right", "right": "left", "above": "below", "below": "above"}
GROUPS = (*SENTENCES.values(), *TWO.values(), RELATED, WORDS)
ALL_FRAMES = [group.of(measuring) for group in GROUPS for measuring in (False, True)]


@dataclass(frozen=True)
class Said:
    """What a prompt says: (name, colour) of each element, as `relation` orders them, and the background."""

    elements: tuple[tuple[str, str], ...]
    background: str
    relation: str = ""


def simplified(prompt: str) -> str:
    """The prompt with one word for each colour, shape and background. Letters and words are upper case."""
    text = f" {prompt} "
    phrases = {word: colour for colour, words in COLOUR_WORDS.items() for word in words}
    phrases |= {word: shape for shape in SHAPES for word in SHAPE_WORDS[shape]}
    phrases |= dict.fromkeys(BACKGROUND_WORDS, "background")
    for word in sorted(phrases, key=len, reverse=True):
        text = re.sub(rf"\b{word}\b", phrases[word], text)
    for word in {size for sizes in SIZE_WORDS.values() for size in sizes}:
        text = re.sub(rf"\b{word} ", "", text)
    return text.strip()


COLOUR = f"(?:{'|'.join(COLOUR_WORDS)})"
SHAPE = f"(?:{'|'.join(SHAPES)})"
DETERMINER = r"(?:(?:an?|the|1|exactly one|just one|a single|one) )?"
FRAMED = {word for group in ALL_FRAMES for frame in group for word in re.findall(r"[a-z]+", frame)}
FRAMED |= {word for phrases in RELATION_WORDS.values() for phrase in phrases for word in phrase.split()}
FRAMED -= {*ADJECTIVES}
# any word that frames do not have: the model is taught to ignore it
ADJECTIVE = rf"(?:(?!(?:{'|'.join(FRAMED | {*COLOUR_WORDS, *SHAPES})})\b)[a-z]+ )?"
SHAPED = (
    rf"\b{DETERMINER}(?:{ADJECTIVE}({COLOUR}) {ADJECTIVE}({SHAPE})\b|"
    rf"{ADJECTIVE}({SHAPE}) (?:in|that is|colored) ({COLOUR}))"
)
GROUND = (
    rf"({COLOUR}) background|"
    rf"background(?: is| in| that is| painted| with| to| should be| be|:| =|) ({COLOUR})|"
    rf"(?:on|against|over|in front of|behind it|is|rest|by|but|all|everything|use|with) ({COLOUR})\b|"
    rf"({COLOUR}) (?:behind|all around|around it)"
)


def said_of_shapes(prompt: str) -> Said:
    """What a prompt about one or two shapes says."""
    text = simplified(prompt)
    found = [(m[2] or m[3], m[1] or m[4]) for m in re.finditer(SHAPED, text)]
    numbers = iter("123")
    rest = re.sub(SHAPED, lambda _: next(numbers), text)
    backgrounds = re.findall(rf"\b{COLOUR}\b", rest)
    assert len(backgrounds) == 1, f"{prompt!r}: {backgrounds} remain"
    if len(found) == 1:
        return Said(tuple(found), backgrounds[0])
    order, relation = related(rest)
    return Said(tuple(found[int(i) - 1] for i in order), backgrounds[0], relation)


def related(text: str) -> tuple[str, str]:
    """The order of the things 1 and 2 and the relation of the first to the second."""
    for relation, words in RELATIONS.items():
        if re.search(rf"1[,;]? (?:(?:(?:and )?it |that )?is |placed )?(?:{words}) 2", text):
            return "12", relation
        before, pronoun = (
            rf"(?:{words}) 1(?:,| is| there is) 2",
            rf"1,?(?: and)? (?:{words}) it(?: is| there is)? 2",
        )
        if re.search(rf"{before}|{pronoun}|1 with 2 (?:{words}) it", text):
            return "21", relation
    for phrase, meaning in PHRASES.items():
        if match := re.search(phrase, text):
            word = match[1] if match.groups() else meaning
            relation = SYNONYMS.get(word, word)
            if relation == "around":
                return "21", "inside"
            return meaning if meaning.isdigit() else "12", relation
    raise AssertionError(f"{text!r} relates nothing")


def said_of_text(prompt: str) -> Said:
    """What a prompt about a letter or a word says."""
    text = simplified(prompt)
    (name,) = re.findall(r"\b[A-Z]{1,4}\b", text)
    ground = re.search(GROUND, text)
    assert ground, f"{prompt!r} names no background"
    (background,) = filter(None, ground.groups())
    colours = re.findall(rf"\b{COLOUR}\b", text)
    colours.remove(background)
    (colour,) = colours
    return Said(((name, colour),), background)
