"""Writes plain prompts of scenes, in many frames."""

import random

from models.training.language import clauses
from models.training.language.frames import SENTENCES, USUAL
from models.training.language.vocabulary import BACKGROUND_WORDS, ENDINGS, OPENINGS, TEXT_OPENINGS
from models.training.language.wording import article, described, pick_colour, strange_word
from models.training.scenes import Scene, usual_background, usual_colour

OMITTED = 0.6  # fraction of the usual colours and backgrounds that a prompt does not name
OPENED = ("object first", "background first", "fragment")  # kinds of frames that may follow an opening


def background_word(rng: random.Random) -> str:
    return rng.choice(BACKGROUND_WORDS) if rng.random() < 0.45 else BACKGROUND_WORDS[0]


def fill(rng: random.Random, frame: str, what: str, colour: str) -> str:
    """A frame of a sentence with its places filled."""
    with_article = article(colour) if rng.random() < 0.85 else colour
    return frame.format(x=what, c=colour, ac=with_article, g=background_word(rng))


def pick_frame(rng: random.Random, measuring: bool = False) -> tuple[str, str]:
    """The kind and the text of a frame."""
    chance = 1.0 if measuring else rng.random()
    if chance < 0.3:
        return "object first", rng.choice(USUAL)
    if chance < 0.6:
        return clauses.compose(rng)
    kind = rng.choice(list(SENTENCES))
    return kind, rng.choice(SENTENCES[kind].of(measuring))


def opening(rng: random.Random, scene: Scene) -> str:
    """The beginning of a prompt, mostly nothing."""
    chance = rng.random()
    if chance < 0.2:
        is_text = scene.element.kind != "shape" and not scene.other
        return rng.choice(TEXT_OPENINGS if is_text and rng.random() < 0.4 else OPENINGS)
    return strange_word(rng) + " " if chance < 0.3 else ""


def sentence(rng: random.Random, scene: Scene) -> str:
    """The scene in a frame; usual colours are sometimes omitted."""
    omits_ground = scene.background == usual_background(scene.elements) and rng.random() < OMITTED
    is_usual = scene.element.colour == usual_colour(scene.background) and not scene.other
    # without a background, no colour means black on white
    coloured = not is_usual or (omits_ground and scene.background != "white") or rng.random() >= OMITTED
    what = described(rng, scene, coloured)
    if omits_ground:
        return opening(rng, scene) + what
    kind, frame = pick_frame(rng)
    filled = fill(rng, frame, what, pick_colour(rng, scene.background))
    return opening(rng, scene) + filled if kind in OPENED else filled


def plain(rng: random.Random, scene: Scene) -> str:
    """A plain prompt as users write them. The tokenizer ignores case, and so does this function mostly."""
    text = sentence(rng, scene)
    if rng.random() < 0.08:
        text += rng.choice(ENDINGS)
    elif rng.random() < 0.04:
        text += ", " + strange_word(rng)
    if rng.random() < 0.25:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.25 and text[-1] not in ".?!":
        text += rng.choice((".", ".", "!"))
    return text


def measured(rng: random.Random, scene: Scene, kind: str) -> str:
    """A prompt in a held-out frame of a kind: one of SENTENCES, or `phrase` for a held-out phrase.

    A phrase for two elements or a word is held out itself, in a frame that training uses.
    """
    if kind == "phrase":
        frame, what = rng.choice(USUAL), described(rng, scene, measuring=True)
    else:
        frame, what = rng.choice(SENTENCES[kind].held_out), described(rng, scene)
    return fill(rng, frame, what, scene.background)
