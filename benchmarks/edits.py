"""Measure what edits with the demo model change and what they keep: `python -m benchmarks.edits`.

Image to image: drawn red circles, in any place and on any background, become blue by prompt: a sentence that
names no place, or a caption with the box of the circle. At each strength the table has the share of images
that show a blue thing, a circle, on the same background, in the same place (intersection over union at least
0.8), and all of these.

Inpainting: a letter is painted into a masked corner beside a drawn shape. `kept`: every pixel outside the
mask equals the source's.

With --json FILE, a stopped run continues.
"""

import argparse
import hashlib
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageChops

from benchmarks.demo_quality import caption
from benchmarks.report import Report, add_arguments, progress, several
from engine.checkpoint.loader import load_pipeline
from engine.client.tokenizer import Tokenizer
from engine.config.model_config import ModelConfig
from engine.messages import FromWorker, ImageDone
from engine.request import EngineRequest, SourceImage
from engine.runner.model_runner import ModelRunner
from engine.scheduling.batch_limits import BatchLimits
from engine.scheduling.scheduler import Scheduler
from engine.worker.core import EngineCore
from models.training.drawing import draw_scene
from models.training.reading import read_image, read_name
from models.training.scenes import COLOURS, LETTERS, SHAPES, Element, Scene, fit_box, random_box, stand
from tests.engine.fakes import COST

SIDE = 128
CORNERS = [
    (left, top, left + SIDE // 2, top + SIDE // 2) for left in (0, SIDE // 2) for top in (0, SIDE // 2)
]
RIGHT = dict.fromkeys(("blue", "circle", "background", "place", "all"), "10.0%")
PROMPTS = ("sentence", "caption")
RECOLOURED = {
    "preset": "<13",
    "prompt": "<9",
    "strength": "8.2f",
    "pairs": "5d",
    **RIGHT,
    "place, mean": "11.2f",
}
PAINTED = {"preset": "<13", "images": "6d", "kept": "6.0%", "letter": "6.0%", "colour": "6.0%"}
Corner = tuple[int, int, int, int]


@dataclass(frozen=True)
class Edit:
    """A source and what is asked for; `mask` is an image of one channel."""

    source: Image.Image
    prompt: str
    strength: float
    mask: Image.Image | None = None

    def image(self) -> SourceImage:
        rgb, mask = self.source.tobytes(), self.mask.tobytes() if self.mask else None
        return SourceImage(rgb, mask, self.strength, hashlib.sha256(rgb + (mask or b"")).hexdigest())


class Editor:
    """The engine in this process. Requests run together, as in a worker."""

    def __init__(self, path: Path, preset: str) -> None:
        self.config = ModelConfig.load(path)
        self.sampling = self.config.presets[preset]
        self.runner = ModelRunner(load_pipeline(self.config.folders, "cpu", torch.float32), "cpu")
        self.tokenizer = Tokenizer(self.config.folders.tokenizer, self.config.limits.max_prompt_tokens)

    def run(self, edits: Sequence[Edit]) -> list[Image.Image]:
        """The image of each edit; its seed is its place in the list."""
        sent: list[FromWorker] = []
        core = EngineCore(self.runner, Scheduler(COST, BatchLimits(COST), 64), sent.append)
        for index, edit in enumerate(edits):
            core.add(self._request(index, edit))
        while core.has_work:
            core.step()
        done = {int(each.request_id): each for each in sent if isinstance(each, ImageDone)}
        return [Image.frombytes("RGB", edit.source.size, done[i].rgb) for i, edit in enumerate(edits)]

    def _request(self, index: int, edit: Edit) -> EngineRequest:
        tokens = self.tokenizer.encode(edit.prompt)
        size = edit.source.size
        return EngineRequest(str(index), tokens, *size, (index,), self.sampling, source=edit.image())


def circles(count: int) -> list[Scene]:
    """Red circles of any size, place and background."""
    rng = random.Random("circles")
    circle = Element("shape", "circle", "red")
    backgrounds = [colour for colour in COLOURS if colour not in ("red", "blue")]
    boxes = [random_box(rng, "shape", "circle", SIDE, SIDE) for _ in range(count)]
    return [Scene(SIDE, SIDE, rng.choice(backgrounds), fit_box(circle, box, SIDE, SIDE)) for box in boxes]


def make_blue(scene: Scene, prompt: str, strength: float, index: int) -> Edit:
    text = f"a blue circle on a {scene.background} background"
    if prompt == "caption":
        assert scene.element.bbox
        text = caption("shape", "circle", "blue", scene.background, scene.element.bbox, index)
    return Edit(draw_scene(scene), text, strength)


def overlap(before: Image.Image, after: Image.Image) -> float:
    """Intersection over union of what both images show; 0 if one shows nothing."""
    parts = [read_image(image).parts[:1] for image in (before, after)]
    if not all(parts):
        return 0.0
    a, b = (part.mask for (part,) in parts)
    return float((a & b).sum() / (a | b).sum())


def judge_circle(scene: Scene, edit: Edit, image: Image.Image) -> dict[str, float]:
    """1 for each property that is right, else 0; and the overlap."""
    reading, place = read_image(image), overlap(edit.source, image)
    part = reading.parts[0] if reading.parts else None
    right = {
        "blue": part is not None and part.colour == "blue",
        "circle": part is not None and read_name(part, "shape") == "circle",
        "background": reading.background == scene.background,
        "place": place >= 0.8,
    }
    return {**right, "all": all(right.values()), "place, mean": place}


def recolour(editor: Editor, prompt: str, strength: float, pairs: int) -> dict[str, float]:
    """The mean of each judgement."""
    scenes = circles(pairs)
    edits = [make_blue(scene, prompt, strength, index) for index, scene in enumerate(scenes)]
    judged = [judge_circle(*each) for each in zip(scenes, edits, editor.run(edits), strict=True)]
    return {name: statistics.fmean(each[name] for each in judged) for name in judged[0]}


def corner_letter(index: int) -> tuple[Edit, str, str, Corner]:
    """An edit that paints a letter into a corner, opposite a shape; the letter, its colour and the corner."""
    rng = random.Random(f"corner {index}")
    colour, other, background = rng.sample(list(COLOURS), 3)
    letter, corner = LETTERS[index % len(LETTERS)], CORNERS[index % len(CORNERS)]
    left, top, right, bottom = corner
    shape = Element("shape", rng.choice(SHAPES), other)
    opposite = (SIDE - (left + right) / 2, SIDE - (top + bottom) / 2)
    source = draw_scene(Scene(SIDE, SIDE, background, stand(shape, *opposite, SIDE / 2, SIDE, SIDE)))
    mask = Image.new("L", source.size)
    mask.paste(255, corner)
    y0, x0, y1, x1 = (round(1000 * edge / SIDE) for edge in (top, left, bottom, right))
    prompt = caption("letter", letter, colour, background, (y0, x0, y1, x1), index)
    return Edit(source, prompt, 1.0, mask), letter, colour, corner


def judge_letter(edit: Edit, letter: str, colour: str, corner: Corner, image: Image.Image) -> dict[str, bool]:
    """Whether pixels outside the corner are equal, and the letter and its colour right."""
    changed = ImageChops.difference(edit.source, image)
    changed.paste((0, 0, 0), corner)
    parts = read_image(image.crop(corner)).parts
    is_read = bool(parts) and read_name(parts[0], "letter") == letter
    is_coloured = bool(parts) and parts[0].colour == colour
    return {"kept": changed.getbbox() is None, "letter": is_read, "colour": is_coloured}


def paint_letters(editor: Editor, images: int) -> dict[str, float]:
    """The mean of each judgement."""
    asked = [corner_letter(index) for index in range(images)]
    made = editor.run([edit for edit, *_ in asked])
    judged = [judge_letter(*ask, image) for ask, image in zip(asked, made, strict=True)]
    return {name: statistics.fmean(each[name] for each in judged) for name in judged[0]}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.edits",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, default=Path("models/demo"))
    parser.add_argument("--preset", default="V4_DEFAULT_20")
    parser.add_argument("--strengths", type=several(float), default=[0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    parser.add_argument("--prompts", type=several(str), default=PROMPTS, help=f"of {', '.join(PROMPTS)}")
    parser.add_argument("--pairs", type=int, default=100, help="circles for each strength")
    parser.add_argument("--letters", type=int, default=104)
    add_arguments(parser)
    options = parser.parse_args()
    report = Report("edits", options, resume=True, recoloured=RECOLOURED, painted=PAINTED)
    editor = Editor(options.model, options.preset)
    asked = [(prompt, strength) for prompt in options.prompts for strength in options.strengths]
    for prompt, strength in progress(asked, "red circles made blue"):
        settings = {"preset": options.preset, "prompt": prompt, "strength": strength, "pairs": options.pairs}
        if not report.rows("recoloured", **settings):
            report.add("recoloured", **settings, **recolour(editor, prompt, strength, options.pairs))
    settings = {"preset": options.preset, "images": options.letters}
    if not report.rows("painted", **settings):
        report.add("painted", **settings, **paint_letters(editor, options.letters))


if __name__ == "__main__":
    main()
