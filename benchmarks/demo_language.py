"""Prompts in frames that are held out from training, and what their images must show."""

import random
from collections.abc import Callable

from PIL import Image

from models.training.language.captions import structured
from models.training.language.frames import SENTENCES
from models.training.language.sentences import measured
from models.training.pairs import random_boxed_pair, random_pair
from models.training.reading import read_image
from models.training.reading_two import read_two, read_word, shows_both
from models.training.scenes import LETTERS, SHAPES, Element, Scene, random_colours
from models.training.words import known_text, random_boxed_word, random_text, random_word

SIDE = 128
CASES: tuple[Callable[[str], str], ...] = (str, str.upper, str.lower, str.title)
Asked = tuple[Scene, str]  # a scene and its prompt


def single(rng: random.Random, kind: str, index: int) -> Scene:
    """A shape or letter, in a held-out combination; consecutive indices cycle through the names."""
    names = LETTERS if kind == "letter" else SHAPES
    name = names[index % len(names)]
    colour, background = random_colours(rng, name, measuring=True)
    return Scene(SIDE, SIDE, background, Element(kind, name, colour, SIDE // 2, SIDE // 2, SIDE // 2))


def held_out_text(rng: random.Random, index: int) -> str:
    """A word that is held out: a known one, or any letters."""
    return known_text(rng) if index % 2 else random_text(rng, 4, measuring=True)


def scene_of(rng: random.Random, kind: str, index: int, boxed: bool) -> Scene:
    if kind == "two":
        return (random_boxed_pair if boxed else random_pair)(rng, measuring=True)
    if kind == "word":
        return (random_boxed_word if boxed else random_word)(rng, SIDE, SIDE, held_out_text(rng, index))
    return single(rng, kind, index)


def framed(kind: str, count: int) -> list[Asked]:
    """Scenes of a kind (shape, letter, two or word), each in a held-out frame and any letter case."""
    rng = random.Random(f"frames {kind}")
    frames = list(SENTENCES)
    if kind in ("two", "word"):
        frames = [frame for each in frames for frame in (each, "phrase")]
    asked = []
    for index in range(count):
        scene = scene_of(rng, kind, index, boxed=False)
        prompt = measured(rng, scene, frames[index % len(frames)])
        asked.append((scene, CASES[index // len(frames) % len(CASES)](prompt)))
    return asked


def boxed(kind: str, count: int) -> list[Asked]:
    """Structured captions of two elements or words, in boxes."""
    rng = random.Random(f"boxes {kind}")
    scenes = [scene_of(rng, kind, index, boxed=True) for index in range(count)]
    return [(scene, structured(rng, scene)) for scene in scenes]


def judge_two(scene: Scene, image: Image.Image) -> dict[str, bool]:
    """Whether the image shows both elements with their relation, or in their boxes."""
    reading = read_two(image)
    return {"background": reading.background == scene.background, "both": shows_both(reading, scene)["both"]}


def judge_word(scene: Scene, image: Image.Image) -> dict[str, bool]:
    """Whether the image shows the whole word."""
    reading = read_image(image)
    return {
        "background": reading.background == scene.background,
        "colour": bool(reading.parts) and reading.parts[0].colour == scene.element.colour,
        "word": read_word(image) == scene.element.name,
    }
