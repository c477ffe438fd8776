"""The demo model follows prompts. Images are checked by their content, not by their pixel values."""

import base64
import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from PIL import Image, ImageChops

from models.training.reading import Part, Reading, read_image, read_name
from tests.server.process import ServerProcess


def draw(demo: ServerProcess, prompt: str | None, **parameters: Any) -> Image.Image:
    body = {"prompt": prompt, "preset": "V4_TURBO_12", "seed": 0} | parameters
    response = demo.http.post("/v1/images", json=body)
    assert response.status_code == 200, response.text
    encoded = response.json()["data"][0]["b64_json"]
    return Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")


def shown(image: Image.Image) -> tuple[Reading, Part]:
    reading = read_image(image)
    assert reading.parts, "the image shows no element"
    return reading, reading.parts[0]


@pytest.mark.parametrize(
    ("colour", "background"), [("red", "white"), ("blue", "yellow"), ("green", "black"), ("white", "purple")]
)
def test_colours_follow_the_prompt(demo: ServerProcess, colour: str, background: str) -> None:
    reading, part = shown(draw(demo, f"a {colour} circle on a {background} background"))
    assert (part.colour, reading.background) == (colour, background)


@pytest.mark.parametrize(
    ("prompt", "shape"),
    [
        ("a yellow star on a blue background", "star"),
        ("Draw a red heart on a white background.", "heart"),
        ("a black ring on pink", "ring"),
        ("on a green background, an orange square", "square"),
        ("a white triangle, purple background", "triangle"),
    ],
)
def test_shapes_follow_the_prompt(demo: ServerProcess, prompt: str, shape: str) -> None:
    _, part = shown(draw(demo, prompt, preset="V4_DEFAULT_20"))
    assert read_name(part, "shape") == shape


@pytest.mark.parametrize("letter", "KTXLOH")
def test_letters_follow_the_prompt(demo: ServerProcess, letter: str) -> None:
    reading, part = shown(draw(demo, f"the letter {letter} in green on black", preset="V4_DEFAULT_20"))
    assert (part.colour, reading.background) == ("green", "black")
    assert read_name(part, "letter") == letter


@pytest.mark.parametrize(("place", "axis", "sign"), [("left", 1, -1), ("right", 1, 1), ("top", 0, -1)])
def test_the_position_follows_the_prompt(demo: ServerProcess, place: str, axis: int, sign: int) -> None:
    _, part = shown(draw(demo, f"a small red square at the {place} on a white background"))
    assert sign * (part.centre[axis] - 0.5) > 0.1


@pytest.mark.parametrize("bbox", [(0, 0, 500, 500), (450, 100, 950, 600), (100, 480, 600, 980)])
def test_caption_elements_are_drawn_in_their_boxes(
    demo: ServerProcess, bbox: tuple[int, int, int, int]
) -> None:
    element = {"type": "obj", "bbox": list(bbox), "desc": "a blue circle"}
    caption = {"compositional_deconstruction": {"background": "plain yellow", "elements": [element]}}
    reading, part = shown(draw(demo, None, json_prompt=caption, preset="V4_DEFAULT_20"))
    assert (part.colour, reading.background) == ("blue", "yellow")
    wanted = (bbox[0] + bbox[2]) / 2000, (bbox[1] + bbox[3]) / 2000
    assert all(abs(a - b) < 0.1 for a, b in zip(part.centre, wanted, strict=True))


@pytest.mark.parametrize("size", ["64x64", "96x96", "128x96"])
def test_other_sizes_have_the_same_content(demo: ServerProcess, size: str) -> None:
    image = draw(demo, "a red circle on a white background", size=size)
    assert "x".join(map(str, image.size)) == size
    reading, part = shown(image)
    assert (part.colour, reading.background) == ("red", "white")


def test_different_seeds_give_different_images_of_the_same_content(demo: ServerProcess) -> None:
    prompt = "a red square on a white background"
    images = [draw(demo, prompt, seed=seed) for seed in (1, 2, 3)]
    assert ImageChops.difference(images[0], images[1]).getbbox()
    assert ImageChops.difference(images[1], images[2]).getbbox()
    for image in images:
        reading, part = shown(image)
        assert (part.colour, reading.background) == ("red", "white")


def test_the_same_seed_gives_the_same_image(demo: ServerProcess) -> None:
    first, second = (draw(demo, "a blue ring on white", seed=5) for _ in range(2))
    assert not ImageChops.difference(first, second).getbbox()


def test_each_prompt_of_a_batch_gets_its_own_image(demo: ServerProcess) -> None:
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
