"""The embedded model draws what it is asked: checked by what the pictures show, not by their numbers."""

import base64
import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from PIL import Image, ImageChops

from models.training.reading import Part, Reading, read_image
from tests.server.process import ServerProcess


def draw(demo: ServerProcess, prompt: str, **parameters: Any) -> Image.Image:
    body = {"prompt": prompt, "preset": "V4_TURBO_12", "seed": 0} | parameters
    response = demo.http.post("/v1/images", json=body)
    assert response.status_code == 200, response.text
    encoded = response.json()["data"][0]["b64_json"]
    return Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")


def shown(image: Image.Image) -> tuple[Reading, Part]:
    reading = read_image(image)
    assert reading.parts, "nothing is drawn"
    return reading, reading.parts[0]


@pytest.mark.parametrize(
    ("colour", "background"), [("red", "white"), ("blue", "yellow"), ("green", "black"), ("white", "purple")]
)
def test_the_colours_asked_for_are_drawn(demo: ServerProcess, colour: str, background: str) -> None:
    reading, part = shown(draw(demo, f"a {colour} circle on a {background} background"))
    assert (part.colour, reading.background) == (colour, background)


def test_another_seed_is_another_image_of_the_same_meaning(demo: ServerProcess) -> None:
    prompt = "a red square on a white background"
    images = [draw(demo, prompt, seed=seed) for seed in (1, 2, 3)]
    assert ImageChops.difference(images[0], images[1]).getbbox()
    assert ImageChops.difference(images[1], images[2]).getbbox()
    for image in images:
        reading, part = shown(image)
        assert (part.colour, reading.background) == ("red", "white")


def test_the_same_seed_is_the_same_image(demo: ServerProcess) -> None:
    first, second = (draw(demo, "a blue ring on white", seed=5) for _ in range(2))
    assert not ImageChops.difference(first, second).getbbox()


def test_a_batch_of_different_prompts_gives_each_its_own(demo: ServerProcess) -> None:
    asked = [("red", "circle", "white"), ("blue", "square", "yellow"), ("green", "ring", "black")]
    asked += [("yellow", "cross", "blue"), ("white", "diamond", "red"), ("black", "triangle", "pink")]
    prompts = [f"a {colour} {shape} on a {background} background" for colour, shape, background in asked]
    with ThreadPoolExecutor(len(prompts)) as threads:
        images = list(threads.map(lambda prompt: draw(demo, prompt), prompts))
    read = [shown(image) for image in images]
    assert [(part.colour, reading.background) for reading, part in read] == [(c, b) for c, _, b in asked]


def test_guidance_and_presets_come_from_the_checkpoint(demo: ServerProcess) -> None:
    model = demo.http.get("/v1/models").json()["data"][0]
    assert set(model["presets"]) == {"V4_QUALITY_48", "V4_DEFAULT_20", "V4_TURBO_12"}
    assert max(model["presets"]["V4_TURBO_12"]["guidance_schedule"]) < 7
    assert model["default_size"] == "128x128"
