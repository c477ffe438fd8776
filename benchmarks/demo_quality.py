"""Measure how often the demo model draws what the prompt asks for: `python -m benchmarks.demo_quality`.

All combinations of name, colour and background are held out from training, and so are the frames of the
sentences, the phrases for two elements, and the words. A real server process makes the images, and their
content is recognised from the pixels. Prints a table and writes a contact sheet.

With --precisions, measures the same images in each precision instead, with V4_TURBO_12 in bfloat16, and
compares them with those of the first. Rows that --json holds of the same code and machine are kept.
"""

import argparse
import base64
import io
import json
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.demo_language import Asked, boxed, framed, judge_two, judge_word
from benchmarks.report import Report, add_arguments, progress, several
from models.training.reading import Reading, read_image, read_name
from models.training.scenes import LETTERS, SHAPES, Box, Scene, random_box, random_colours
from tests.server.process import ServerProcess, until

CENTRE = 0.1  # tolerance of a box's centre, as a fraction of the side
LATENCY = {"what": "<45", "seconds": "7.2f"}
BARS = {"background": 0.97, "colour": 0.97, "shape": 0.93, "letter": 0.85, "centre": 0.90}
BARS_OF_SEVERAL = {"both": 0.75, "word": 0.60}  # two elements with their relation, and whole words
# Flags of the server.
PRECISIONS = {
    "exact": (),
    "fp8-weights": ("--quantize", "fp8"),
    "fp8-products": ("--quantize", "fp8", "--matmul", "fp8"),
    "nf4-weights": ("--quantize", "nf4"),
}
MOST_SHOWN = 800  # images from which the contact sheet takes no further rows
MOST_POINTS = 1.5  # by which any property may be worse than in the first precision
PRECISION = {
    "precision": "<13",
    "images": "6d",
    **dict.fromkeys(BARS, "7.1%"),
    "points": "7.1f",
    "verdict": "<7",
}
QUALITY = {
    "what": "<45",
    "images": "6d",
    **dict.fromkeys((*BARS, *BARS_OF_SEVERAL), "7.1%"),
    "missed": "<6",
}


@dataclass(frozen=True)
class Ask:
    """One request and what its image must show."""

    kind: str
    name: str
    colour: str
    background: str
    prompt: str
    size: tuple[int, int] = (128, 128)
    box: Box | None = None
    scene: Scene | None = None  # of two elements or a word


@dataclass(frozen=True)
class Answer:
    """The image, and whether each of its properties is right."""

    ask: Ask
    image: Image.Image
    right: dict[str, bool]


def article(word: str) -> str:
    return ("an " if word[0] in "aeiou" else "a ") + word


SHAPE_WORDINGS = (
    "{a} {n} on {b} background",
    "Draw {a} {n} on a plain {g} background.",
    "{a} {n}, {g} background",
    "a picture of {a} {n} in the middle of {b} image",
    "on {b} background, {a} {n}",
    "{a} {n} on {g}",
    "please make an image showing {a} {n} against {b} backdrop",
)
LETTER_WORDINGS = (
    "the letter {n} in {c} on {g}",
    'a poster with the letter "{n}" in {c} on {g}',
    "{a} letter {n} on {b} background",
    "Write a capital {n} in {c} on {b} background",
    "the letter {n}, {c}, on a plain {g} background",
)


def held_out_specs(kind: str, count: int) -> list[tuple[str, str, str]]:
    """Held-out combinations (name, colour, background) that cycle through the names."""
    rng = random.Random(f"quality {kind}")
    names = LETTERS if kind == "letter" else SHAPES
    specs = []
    for index in range(count):
        colour, background = random_colours(rng, names[index % len(names)], measuring=True)
        specs.append((names[index % len(names)], colour, background))
    return specs


def plain_asks(kind: str, count: int, size: tuple[int, int] = (128, 128)) -> list[Ask]:
    """Prompts as plain sentences in several wordings."""
    wordings = LETTER_WORDINGS if kind == "letter" else SHAPE_WORDINGS
    asks = []
    for index, (n, c, g) in enumerate(held_out_specs(kind, count)):
        wording = wordings[(index // 3) % len(wordings)]
        prompt = wording.format(n=n, c=c, g=g, a=article(c), b=article(g))
        asks.append(Ask(kind, n, c, g, prompt, size))
    return asks


def boxed_asks(kind: str, count: int) -> list[Ask]:
    """Structured captions with a random box."""
    rng = random.Random(f"box {kind}")
    asks = []
    for index, (n, c, g) in enumerate(held_out_specs(kind, count)):
        box = random_box(rng, kind, n, 128, 128)
        asks.append(Ask(kind, n, c, g, caption(kind, n, c, g, box, index), box=box))
    return asks


def framed_ask(kind: str, asked: Asked) -> Ask:
    scene, prompt = asked
    element = scene.element
    several = scene if kind in ("two", "word") else None
    return Ask(kind, element.name, element.colour, scene.background, prompt, scene=several)


def framed_asks(kind: str, count: int) -> list[Ask]:
    """Prompts in held-out frames, in any letter case."""
    return [framed_ask(kind, asked) for asked in framed(kind, count)]


def several_in_boxes(kind: str, count: int) -> list[Ask]:
    """Structured captions of two elements, or of words."""
    return [framed_ask(kind, asked) for asked in boxed(kind, count)]


def caption(kind: str, name: str, colour: str, background: str, box: Box, index: int) -> str:
    """A caption in the published schema; captions of odd index have a summary."""
    element: dict[str, Any] = {"type": "text" if kind == "letter" else "obj", "bbox": list(box)}
    what = f"the letter {name} in {colour}" if kind == "letter" else f"{article(colour)} {name}"
    if kind == "letter":
        element["text"] = name
    element["desc"] = f"{colour} capital letter" if kind == "letter" else what
    made: dict[str, Any] = {}
    if index % 2:
        made["high_level_description"] = f"{what} on {article(background)} background"
    made["compositional_deconstruction"] = {"background": f"plain {background}", "elements": [element]}
    return json.dumps(made)


def judge(ask: Ask, image: Image.Image) -> Answer:
    """Recognise what the image shows and compare it with the request."""
    if ask.scene:
        return Answer(ask, image, (judge_two if ask.kind == "two" else judge_word)(ask.scene, image))
    reading: Reading = read_image(image)
    part = reading.parts[0] if reading.parts else None
    right = {
        "background": reading.background == ask.background,
        "colour": part is not None and part.colour == ask.colour,
        ask.kind: part is not None and read_name(part, ask.kind) == ask.name,
    }
    if ask.box:
        y0, x0, y1, x1 = (v / 1000 for v in ask.box)
        y, x = part.centre if part else (9.0, 9.0)
        right["centre"] = abs(y - (y0 + y1) / 2) <= CENTRE and abs(x - (x0 + x1) / 2) <= CENTRE
    return Answer(ask, image, right)


class Painter:
    """Requests images from a server, eight at a time so that it can batch them."""

    def __init__(self, server: ServerProcess, **parameters: Any) -> None:
        self.server, self.parameters = server, parameters

    def paint(self, ask: Ask, seed: int) -> Answer:
        body = {"prompt": ask.prompt, "size": "{}x{}".format(*ask.size), "seed": seed} | self.parameters
        response = self.server.http.post("/v1/images", json=body, timeout=300)
        response.raise_for_status()
        encoded = response.json()["data"][0]["b64_json"]
        return judge(ask, Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB"))

    def paint_all(self, asks: Sequence[Ask]) -> list[Answer]:
        with ThreadPoolExecutor(8) as threads:
            return list(threads.map(self.paint, asks, range(len(asks))))


def shares(answers: Sequence[Answer]) -> dict[str, float]:
    """The share of right answers per property."""
    names = dict.fromkeys(name for answer in answers for name in answer.right)
    return {
        name: statistics.fmean(answer.right[name] for answer in answers if name in answer.right)
        for name in names
    }


def add_row(report: Report, title: str, answers: Sequence[Answer]) -> None:
    """Add a row of the table: the share of each property and which of them miss their bar."""
    right = shares(answers)
    missed = ", ".join(name for name, share in right.items() if share < (BARS | BARS_OF_SEVERAL)[name])
    report.add("quality", what=title, images=len(answers), **right, missed=missed)


def seconds_per_image(painter: Painter, asks: Sequence[Ask]) -> float:
    """Median latency of sequential requests."""
    times = []
    for seed, ask in enumerate(asks):
        started = time.perf_counter()
        painter.paint(ask, seed)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def contact_sheet(answers: Sequence[Answer], path: Path, columns: int = 16) -> None:
    """Write all images as a grid, wrong ones with a red border."""
    side, rim = 128, 3
    cell = side + 2 * rim
    rows = -(-len(answers) // columns)
    sheet = Image.new("RGB", (columns * cell, rows * cell), (60, 60, 60))
    for index, answer in enumerate(answers):
        left, top = index % columns * cell, index // columns * cell
        if not all(answer.right.values()):
            sheet.paste((255, 0, 0), (left, top, left + cell, top + cell))
        picture = answer.image.copy()
        picture.thumbnail((side, side))
        sheet.paste(picture, (left + rim, top + rim))
    sheet.save(path, optimize=True)


def measure(report: Report, server: ServerProcess, options: argparse.Namespace) -> list[Answer]:
    """Print the tables and return the answers for the contact sheet."""
    shapes, letters, boxes, several = options.shapes, options.letters, options.boxes, options.several
    turbo = Painter(server, preset="V4_TURBO_12")
    default = Painter(server)
    unguided = Painter(server, guidance_scale=1.0)
    shape_asks, letter_asks = plain_asks("shape", shapes), plain_asks("letter", letters)
    box_asks = boxed_asks("shape", boxes) + boxed_asks("letter", boxes // 2)
    kinds = {"shape": shapes, "letter": letters, "two": several, "word": several}
    framed_by = {kind: framed_asks(kind, count) for kind, count in kinds.items()}
    boxed_by = {kind: several_in_boxes(kind, several) for kind in ("two", "word")}
    rows: list[tuple[str, Painter, list[Ask]]] = [
        ("shapes, held-out frames, V4_DEFAULT_20", default, framed_by["shape"]),
        ("letters, held-out frames, V4_DEFAULT_20", default, framed_by["letter"]),
        ("two elements, held-out frames, V4_DEFAULT_20", default, framed_by["two"]),
        ("words, held-out frames, V4_DEFAULT_20", default, framed_by["word"]),
        ("captions with bbox, V4_DEFAULT_20", default, box_asks),
        ("captions with two boxes, V4_DEFAULT_20", default, boxed_by["two"]),
        ("captions with words, V4_DEFAULT_20", default, boxed_by["word"]),
        ("shapes, sentences, V4_DEFAULT_20", default, shape_asks),
        ("letters, sentences, V4_DEFAULT_20", default, letter_asks),
        ("shapes, sentences, V4_TURBO_12", turbo, shape_asks),
        ("letters, sentences, V4_TURBO_12", turbo, letter_asks),
        ("two elements, held-out frames, V4_TURBO_12", turbo, framed_by["two"]),
        ("words, held-out frames, V4_TURBO_12", turbo, framed_by["word"]),
        ("shapes, guidance 1, 20 steps", unguided, shape_asks),
        ("letters, guidance 1, 20 steps", unguided, letter_asks),
    ]
    for width, height in ((64, 64), (96, 96), (128, 96)):
        asks = plain_asks("shape", shapes // 4, (width, height))
        rows.append((f"shapes, {width}x{height}, V4_DEFAULT_20", default, asks))
    shown: list[Answer] = []
    for title, painter, asks in progress(rows, "demo model"):
        answers = painter.paint_all(asks)
        add_row(report, title, answers)
        shown += answers if len(shown) < MOST_SHOWN else []
    seconds = seconds_per_image(turbo, shape_asks[:11])
    report.add("latency", what="V4_TURBO_12, 128x128, one at a time", seconds=seconds)
    return shown


def compare(report: Report, options: argparse.Namespace) -> None:
    """Add a row for each precision that the report does not hold yet."""
    asks = plain_asks("shape", options.shapes) + plain_asks("letter", options.letters)
    asks += boxed_asks("shape", options.boxes) + boxed_asks("letter", options.boxes // 2)
    first = {name: row[name] for row in report.rows("precision")[:1] for name in BARS}
    missing = [name for name in options.precisions if not report.rows("precision", precision=name)]
    for name in progress(missing, "demo model"):
        with serving(options.model, "--dtype", "bfloat16", *PRECISIONS[name]) as server:
            right = shares(Painter(server, preset="V4_TURBO_12").paint_all(asks))
        first = first or right
        points = max(100 * (first[each] - right[each]) for each in right)
        verdict = "ok" if points <= MOST_POINTS else "MISSED"
        report.add("precision", precision=name, images=len(asks), **right, points=points, verdict=verdict)


@contextmanager
def serving(model: str, *flags: str) -> Iterator[ServerProcess]:
    server = ServerProcess("--model", model, "--log-level", "error", *flags, module="server")
    try:
        until(lambda: server.http.get("/readyz").status_code == 200)
        yield server
    finally:
        server.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_quality", description=__doc__)
    parser.add_argument("--model", default="models/demo")
    parser.add_argument("--shapes", type=int, default=240)
    parser.add_argument("--letters", type=int, default=130)
    parser.add_argument("--boxes", type=int, default=120)
    parser.add_argument(
        "--several", type=int, default=120, help="pairs and words, each in sentences and boxes"
    )
    parser.add_argument(
        "--precisions",
        type=several(str),
        default=[],
        help=f"of {','.join(PRECISIONS)}; the first is the reference",
    )
    parser.add_argument("--sheet", type=Path, default=Path("demo-quality.png"))
    add_arguments(parser)
    options = parser.parse_args()
    resume = bool(options.precisions)
    report = Report("demo-quality", options, resume, quality=QUALITY, latency=LATENCY, precision=PRECISION)
    if options.precisions:
        compare(report, options)
        return
    with serving(options.model) as server:
        shown = measure(report, server, options)
    contact_sheet(shown, options.sheet)
    print(f"contact sheet: {options.sheet} (red border: wrong)")


if __name__ == "__main__":
    main()
