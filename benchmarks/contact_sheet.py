"""Draw the contact sheet of the README with the demo model: `python -m benchmarks.contact_sheet`.

A real server process makes the images. Each prompt is drawn once, from one seed; none is chosen by hand.
"""

import argparse
import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from tests.server.process import ServerProcess, until

OUTPUT = Path(__file__).parents[1] / "docs/images/contact-sheet.png"
COLUMNS, SIDE, LABEL, GAP = 6, 128, 16, 20  # images a row, and pixels
INK, PAPER = (40, 42, 48), (255, 255, 255)
PROMPTS = (
    "a red circle on white",
    "a blue star on yellow",
    "the letter K in green on black",
    "a pink heart on purple",
    "an orange ring on blue",
    "a white cross on red",
    "the letter R in red on cyan",
    "a yellow triangle on green",
    "a cyan diamond on black",
    "a small black square on pink",
    "a big green circle on white",
    "the letter A in white on brown",
)
# Captions: description, background, box, label.
BOXED = (
    ("red circle", "white", (50, 50, 500, 500), "top left"),
    ("blue square", "yellow", (500, 500, 950, 950), "bottom right"),
    ("purple star", "white", (250, 500, 750, 1000), "right"),
    ("green heart", "black", (500, 250, 1000, 750), "bottom"),
    ("orange diamond", "blue", (0, 500, 500, 1000), "top right"),
    ("white ring", "purple", (250, 250, 750, 750), "centre"),
)


def caption(description: str, background: str, box: tuple[int, ...]) -> dict[str, Any]:
    element = {"type": "obj", "bbox": list(box), "desc": description}
    return {"compositional_deconstruction": {"background": background, "elements": [element]}}


def requests() -> list[tuple[str, dict[str, Any]]]:
    """The label and the body of each image."""
    plain = [(prompt, {"prompt": prompt}) for prompt in PROMPTS]
    boxed = [(f"{what}, {where}", {"json_prompt": caption(what, on, box)}) for what, on, box, where in BOXED]
    return plain + boxed


def draw(server: ServerProcess, body: dict[str, Any]) -> Image.Image:
    response = server.http.post("/v1/images", json={"seed": 7, **body})
    response.raise_for_status()
    return Image.open(io.BytesIO(base64.b64decode(response.json()["data"][0]["b64_json"])))


def sheet(images: list[tuple[str, Image.Image]]) -> Image.Image:
    """The images in rows, each above its label."""
    width, height = SIDE + GAP, SIDE + LABEL + GAP
    made = Image.new("RGB", (COLUMNS * width + GAP, -(-len(images) // COLUMNS) * height + GAP), PAPER)
    pen, font = ImageDraw.Draw(made), ImageFont.load_default(10)
    for index, (label, image) in enumerate(images):
        x, y = GAP + index % COLUMNS * width, GAP + index // COLUMNS * height
        made.paste(image, (x, y))
        pen.text((x, y + SIDE + 3), label, INK, font)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the PNG file")
    output: Path = parser.parse_args().output
    server = ServerProcess("--model", "models/demo", "--log-level", "error", module="server")
    try:
        until(lambda: server.http.get("/readyz").status_code == 200)
        images = [(label, draw(server, body)) for label, body in requests()]
    finally:
        server.close()
    sheet(images).quantize(256, dither=Image.Dither.NONE).save(output, optimize=True)
    print(f"{output}: {len(images)} images, {output.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
