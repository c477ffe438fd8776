"""`/v1/images/edits` and `/v1/images/variations`: fields, fits, masks, bodies and responses."""

import base64
import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from server.edits.multipart import Part
from server.edits.payload import of_form
from server.schemas.images import ImageRequest
from tests.server import sse
from tests.server.edits.client import EDITS, edit, made, refused, source_of
from tests.server.edits.pictures import BLUE, RED, encoded, halves, hole, noise
from tests.server.process import ServerProcess

Start = Callable[..., ServerProcess]
PNG = {"Accept": "image/png"}
MADE = (5, 64, 128)  # the colour of the fake engine for seed 5


def test_strength_blends(server: ServerProcess) -> None:
    image = noise(64, 64)
    assert made(edit(server, encoded(image), headers=PNG, strength="0")).tobytes() == image.tobytes()
    assert made(edit(server, encoded(image), headers=PNG, strength="1")).getpixel((9, 9)) == MADE
    half = made(edit(server, headers=PNG, strength="0.5")).getpixel((0, 0))
    assert half == (130, 32, 64)
    assert source_of(server)["strength"] == 0.5


@pytest.mark.parametrize(
    ("fields", "strength"),
    [({}, 0.7), ({"image_weight": "100"}, 0.0), ({"image_weight": "1"}, 0.99), ({"strength": "0.25"}, 0.25)],
    ids=str,
)
def test_strengths(server: ServerProcess, fields: dict[str, str], strength: float) -> None:
    assert edit(server, **fields).status_code == 200
    assert source_of(server)["strength"] == pytest.approx(strength)


def test_a_mask_keeps_every_other_pixel(server: ServerProcess) -> None:
    image, mask = noise(64, 64), hole(box=(48, 0, 64, 16))
    found = made(edit(server, encoded(image), encoded(mask), PNG))
    assert source_of(server)["strength"] == 1
    assert source_of(server)["painted"] == 256 / 4096
    assert found.crop((48, 0, 64, 16)).getcolors() == [(256, MADE)]
    found.paste(image.crop((48, 0, 64, 16)), (48, 0))
    assert found.tobytes() == image.tobytes()


def test_the_default_feather_changes_pixels_near_the_mask_alone(server: ServerProcess) -> None:
    image, mask = noise(64, 64), hole(box=(0, 0, 16, 64))
    found = made(edit(server, encoded(image), encoded(mask), PNG, feather=""))
    assert found.crop((0, 0, 16, 64)).getcolors() == [(1024, MADE)]
    assert found.crop((24, 0, 64, 64)).tobytes() == image.crop((24, 0, 64, 64)).tobytes()
    assert found.crop((16, 0, 24, 64)).tobytes() != image.crop((16, 0, 24, 64)).tobytes()


def test_mask_modes(server: ServerProcess) -> None:
    """A mask whose brightness says the opposite of its transparency."""
    mask = Image.new("RGBA", (64, 64), "white")
    mask.paste((0, 0, 0, 0), (0, 0, 64, 16))
    for mode, painted in (("auto", 0.25), ("alpha", 0.25), ("grey", 0.75), ("gray", 0.75)):
        assert edit(server, mask=encoded(mask), mask_mode=mode).status_code == 200
        assert source_of(server)["painted"] == pytest.approx(painted)


def test_outpainting(server: ServerProcess) -> None:
    image = noise(64, 64)
    response = edit(server, encoded(image), headers=PNG, expand='{"left": 64, "bottom": 32}')
    found = made(response)
    assert found.size == (128, 96)
    assert found.crop((64, 0, 128, 64)).tobytes() == image.tobytes()
    assert (found.getpixel((0, 0)), found.getpixel((127, 95))) == (MADE, MADE)
    bracketed = {"expand[left]": "64", "expand[bottom]": "32"}
    assert edit(server, encoded(image), headers=PNG, **bracketed).content == response.content


def test_a_mask_that_was_not_chosen_is_absent(server: ServerProcess) -> None:
    """Browsers send it without content."""
    for body in ({"files": {"mask": ("", b"")}}, {"data": {"mask": ""}}):
        files = {"image": ("a.png", encoded(halves())), **body.get("files", {})}
        data = {"prompt": "a cat", **body.get("data", {})}
        assert server.http.post(EDITS, files=files, data=data).status_code == 200
        assert source_of(server)["painted"] is None


def test_objects_in_lists_may_have_brackets() -> None:
    """As OpenAI's client for Python sends `extra_body`."""
    by_order = [("adapters[][name]", "a"), ("adapters[][scale]", "2"), ("adapters[][name]", "b")]
    by_index = [("adapters[0][name]", "a"), ("adapters[1][name]", "b"), ("adapters[0][scale]", "2")]
    for fields in (by_order, by_index):
        payload = of_form([Part(name, bytearray(text.encode())) for name, text in fields], ImageRequest)
        assert payload.fields == {"adapters": [{"name": "a", "scale": 2}, {"name": "b"}]}


@pytest.mark.parametrize(
    ("side", "fields", "size"),
    [
        ((96, 64), {}, (96, 64)),
        ((96, 64), {"size": "auto"}, (96, 64)),
        ((960, 640), {}, (160, 112)),
        ((30, 30), {}, (128, 128)),
        ((96, 64), {"size": "128x128"}, (128, 128)),
        ((96, 64), {"aspect_ratio": "1:1"}, (128, 128)),
        ((96, 64), {"width": "64", "height": "80"}, (64, 80)),
        ((2000, 10), {}, (240, 80)),
    ],
    ids=str,
)
def test_sizes(server: ServerProcess, side: Any, fields: dict[str, str], size: tuple[int, int]) -> None:
    response = edit(server, encoded(halves(*side)), **fields)
    assert response.json()["size"] == f"{size[0]}x{size[1]}"
    assert source_of(server)["bytes"] == 3 * size[0] * size[1]


@pytest.mark.parametrize(("fit", "corner"), [("cover", RED), ("contain", RED), ("stretch", RED)])
def test_fits(server: ServerProcess, fit: str, corner: Any) -> None:
    image = encoded(halves(192, 96))
    found = made(edit(server, image, headers=PNG, strength="0", size="96x96", fit=fit))
    assert (found.getpixel((0, 0)), found.getpixel((95, 95))) == (corner, BLUE)


def in_lines(text: str) -> str:
    """As RFC 2045 has it."""
    return "\r\n".join(text[start : start + 76] for start in range(0, len(text), 76)) + " \t\n"


def test_json_bodies(server: ServerProcess) -> None:
    data, mask = (base64.b64encode(encoded(each)).decode() for each in (halves(), hole()))
    body = {"prompt": "a cat", "seed": 5, "feather": 0}
    bodies: list[dict[str, Any]] = [
        {"image": data, "mask": mask},
        {"image": [f"data:image/png;base64,{data}"], "mask": f"data:image/png;base64,{mask}"},
        {"images": [{"image_url": f"data:image/png;base64,{data}"}], "mask": {"image_url": mask}},
        {"image_url": data, "mask": mask, "strength": "1.0", "expand": None},
        {"image": in_lines(data), "mask": f"data:image/png;base64,{in_lines(mask)}"},
    ]
    expected = edit(server, mask=encoded(hole()), headers=PNG).content
    for each in bodies:
        response = server.http.post(EDITS, json={**body, **each}, headers=PNG)
        assert response.status_code == 200, response.text
        assert response.content == expected


def test_response_of_an_edit(server: ServerProcess) -> None:
    answer = edit(server, n="2", size="64x64", quality="low", output_format="jpeg").json()
    assert [image["seed"] for image in answer["data"]] == [5, 6]
    assert Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"]))).format == "JPEG"
    assert (answer["size"], answer["quality"]) == ("64x64", "low")
    assert answer["usage"]["input_tokens_details"] == {"image_tokens": 16, "text_tokens": 2}
    assert answer["usage"]["total_tokens"] == 2 + 16 + 2 * 16
    assert "warnings" not in answer


def test_events_of_an_edit(server: ServerProcess) -> None:
    response = edit(server, stream="true", partial_images="2", progress="True", num_inference_steps="2")
    events = sse.named(response.text.split("\n"))
    steps = [event.name for event in events]
    assert steps.count("image_edit.progress") == 2
    assert steps.count("image_edit.partial_image") == 2
    assert (steps[-1], events[-1].data["seed"]) == ("image_edit.completed", 5)
    assert all(event.data["type"] == event.name for event in events)


def test_a_variation_needs_no_prompt(server: ServerProcess) -> None:
    files = {"image": ("a.png", encoded(halves()))}
    answer = server.http.post("/v1/images/variations", files=files, data={"n": "2", "size": "64x64"})
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["data"]) == 2
    assert source_of(server)["strength"] == 0.5
    edit(server, path="/v1/images/variations", image_weight="20")
    assert source_of(server)["strength"] == 0.8
    assert "`prompt`" in refused(edit(server, prompt=""), "prompt", "invalid_value")


def test_several_images_and_animations_give_warnings(server: ServerProcess) -> None:
    frames = [Image.new("RGB", (64, 64), colour) for colour in (RED, BLUE)]
    animated = encoded(frames[0], "webp", save_all=True, append_images=frames[1:], lossless=True)
    files = [("image[]", ("a.webp", animated)), ("image[]", ("b.png", encoded(halves())))]
    form = {"prompt": "a cat", "strength": "0", "size": "64x64"}
    answer = server.http.post(EDITS, files=files, data=form).json()
    assert [warning["code"] for warning in answer["warnings"]] == ["animation_ignored", "images_ignored"]
    image = Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"])))
    assert image.getpixel((0, 0)) == RED


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"strength": "1.1"}, "strength", "invalid_value"),
        ({"strength": "much"}, "strength", "invalid_type"),
        ({"strength": "0.5", "image_weight": "50"}, "image_weight", "invalid_value"),
        ({"image_weight": "0"}, "image_weight", "invalid_value"),
        ({"feather": "257"}, "feather", "invalid_value"),
        ({"fit": "squeeze"}, "fit", "invalid_value"),
        ({"mask_mode": "red"}, "mask_mode", "invalid_value"),
        ({"expand": '{"left": -1}'}, "expand.left", "invalid_value"),
        ({"expand": '{"up": 1}'}, "expand.up", "invalid_value"),
        ({"expand": "left"}, "expand", "invalid_type"),
        ({"expand[left]": "8000", "size": "64x64"}, "expand.left", "invalid_value"),
        ({"expand": '{"top": 8193}'}, "expand.top", "invalid_value"),
        ({"mask_mode": "alpha"}, "mask_mode", "invalid_value"),
        ({"feather": "8"}, "feather", "invalid_value"),
        ({"size": "65x65"}, "size", "invalid_value"),
        ({"stream": "maybe"}, "stream", "invalid_type"),
        ({"markup": "x"}, "markup", "unknown_parameter"),
        ({"colour": "red"}, "colour", "unknown_parameter"),
        ({"model": "other"}, "model", "model_not_found"),
        ({"background": "transparent"}, "background", "invalid_value"),
        ({"partial_images": "1"}, "partial_images", "invalid_value"),
    ],
    ids=str,
)
def test_bad_fields(server: ServerProcess, fields: dict[str, str], param: str, code: str) -> None:
    status = 404 if code == "model_not_found" else 400
    assert "Expand" not in refused(edit(server, **fields), param, code, status)


def test_feather_softens_what_is_transparent_too(server: ServerProcess) -> None:
    assert edit(server, encoded(hole()), feather="8").status_code == 200
    assert edit(server, feather="8", expand='{"left": 64}').status_code == 200
    assert edit(server, mask_mode="auto").status_code == 200


def test_bad_masks(server: ServerProcess) -> None:
    wide = encoded(hole(128, 64))
    assert "64x64, not 128x64" in refused(edit(server, mask=wide), "mask", "invalid_value")
    black = encoded(Image.new("L", (64, 64)))
    assert "paints nothing" in refused(edit(server, mask=black), "mask", "invalid_value")
    assert "`mask` is not a readable" in refused(edit(server, mask=b"x"), "mask")
    cut = encoded(noise(64, 64))[:3000]
    assert "`mask` is damaged" in refused(edit(server, mask=cut), "mask")


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"prompt": "a"}, "image", "invalid_value"),
        ({"prompt": "a", "image": 1}, "image", "invalid_type"),
        ({"prompt": "a", "image": "%%%"}, "image", "invalid_value"),
        ({"prompt": "a", "image": "aGVs\u00a0bG8="}, "image", "invalid_value"),
        ({"prompt": "a", "image": "data:image/png,abc"}, "image", "invalid_value"),
        ({"prompt": "a", "image": "https://example.com/a.png"}, "image", "invalid_value"),
        ({"prompt": "a", "images": [{"file_id": "x"}]}, "images", "invalid_type"),
        ({"prompt": "a", "image": "aGVsbG8="}, "image", "invalid_image"),
        ({"prompt": "a", "image": ["aGVsbG8="] * 17}, "image", "invalid_value"),
        ({"prompt": "a", "image": "aGVsbG8=", "stream": "true"}, "stream", "invalid_type"),
        ([], None, "invalid_type"),
    ],
    ids=str,
)
def test_bad_json(server: ServerProcess, body: Any, param: str | None, code: str) -> None:
    refused(server.http.post(EDITS, json=body), param, code)


def test_an_image_request_takes_no_image(server: ServerProcess) -> None:
    response = server.create(image="aGVsbG8=")
    assert "/v1/images/edits" in refused(response, "image", "unknown_parameter")


def test_retries_with_other_boundaries_share_a_generation(server: ServerProcess) -> None:
    """Every request of an HTTP client has its own boundary."""
    headers = {"Idempotency-Key": "edit"}
    before = server.state()["finished"]
    first, second = edit(server, headers=headers), edit(server, headers=headers)
    assert first.json()["id"] == second.json()["id"]
    assert server.state()["finished"] == before + 1
    variation = edit(server, headers=headers, path="/v1/images/variations")
    for other in (edit(server, encoded(halves(80, 64)), headers=headers), variation):
        refused(other, "Idempotency-Key", "idempotency_key_reused", 422)


def test_the_result_has_no_metadata_of_the_upload(server: ServerProcess) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a secret place"
    data = encoded(halves(), "jpeg", exif=exif.tobytes(), comment=b"a secret comment")
    for kind in ("png", "jpeg", "webp"):
        response = edit(server, data, headers={"Accept": f"image/{kind}"}, strength="0")
        assert response.status_code == 200
        assert b"secret" not in response.content
    facts = json.loads(Image.open(io.BytesIO(edit(server, headers=PNG).content)).info["ideoserve"])
    assert facts["strength"] == 0.7


def test_edits_off(start: Start) -> None:
    server = start("--edits", "off")
    assert "--edits off" in refused(edit(server), None, "edits_not_enabled", 404)
    paths = server.http.get("/openapi.json").json()["paths"]
    assert not any("edits" in path or "variations" in path for path in paths)
    assert server.http.get("/v1/models").json()["data"][0]["edits"] is False


def test_the_document_describes_edits(server: ServerProcess) -> None:
    document = server.http.get("/openapi.json").json()
    content = document["paths"][EDITS]["post"]["requestBody"]["content"]
    assert list(content) == ["multipart/form-data", "application/json"]
    form = document["components"]["schemas"]["EditForm"]
    assert form["required"] == ["image"]
    assert {"image", "mask", "strength", "expand", "prompt"} <= form["properties"].keys()
    assert form["properties"]["strength"]["anyOf"][0]["maximum"] == 1
    assert "oneOf" not in document["components"]["schemas"]["VariationForm"]
    assert server.http.get("/v1/models").json()["data"][0]["edits"] is True
