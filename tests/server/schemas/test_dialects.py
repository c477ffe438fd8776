"""Fields and values of other image APIs: served, mapped, ignored with a warning, or refused with a hint."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config.model_config import Limits
from server.edits.request import EditRequest
from server.schemas import sizes
from server.schemas.dialects import FIELDS, INTEGERS, NUMBERS, VALUES, Ignore, Merge, Refuse, Use
from server.schemas.images import ImageRequest
from server.schemas.sizes import Size
from tests.server.process import REPOSITORY, ServerProcess

BODIES = json.loads((Path(__file__).parent / "bodies.json").read_text("utf-8"))


def post(server: ServerProcess, **body: Any) -> httpx.Response:
    return server.http.post("/v1/images/generations", json={"prompt": "a cat", **body})


def error(response: httpx.Response, param: str, code: str = "invalid_value", status: int = 400) -> str:
    assert response.status_code == status, response.text
    found = response.json()["error"]
    assert (found["param"], found["code"]) == (param, code), found
    message: str = found["message"]
    return message


def codes(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [warning["code"] for warning in response.json().get("warnings", [])]


def drawn(server: ServerProcess) -> dict[str, Any]:
    request: dict[str, Any] = server.state()["requests"][-1]
    return request


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"n": 2.0, "seed": 3.0}, {"seeds": [3, 4]}),
        ({"n": "2", "seed": "3"}, {"seeds": [3, 4]}),
        ({"width": "64", "height": 80.0}, {"width": 64, "height": 80}),
        ({"seed": "", "size": "", "quality": "", "stream": ""}, {"width": 128}),
        ({"size": "64x96", "aspect_ratio": "", "width": None}, {"width": 64, "height": 96}),
        ({"seed": 2**31}, {"seeds": [0]}),
        ({"seed": 2**64 - 1}, {"seeds": [2**31 - 1]}),
        ({"seed": str(2**64 - 1)}, {"seeds": [2**31 - 1]}),
        ({"num_images": 2, "seed": 1}, {"seeds": [1, 2]}),
        ({"extra_body": {"seed": 1, "n": 2}}, {"seeds": [1, 2]}),
        ({"extra_body": {"seed": 1}, "seed": 1}, {"seeds": [1]}),
        ({"aspectRatio": "16:9"}, {"width": 176, "height": 96}),
        ({"aspect_ratio": "1x1"}, {"width": 128, "height": 128}),
        ({"aspect_ratio": "auto", "size": "64x96"}, {"width": 64, "height": 96}),
        ({"resolution": "64x96"}, {"width": 64, "height": 96}),
    ],
    ids=str,
)
def test_mapped(server: ServerProcess, body: dict[str, Any], expected: dict[str, Any]) -> None:
    assert codes(post(server, **body)) == (["seed_reduced"] if int(body.get("seed") or 0) > 2**31 - 1 else [])
    assert {name: drawn(server)[name] for name in expected} == expected


@pytest.mark.parametrize("name", ["steps", "num_steps"])
@pytest.mark.parametrize("guidance", ["cfg", "cfg_scale", "guidance", "true_cfg_scale"])
def test_steps_and_guidance(server: ServerProcess, name: str, guidance: str) -> None:
    assert codes(post(server, **{name: 3, guidance: "4.5"})) == []
    assert drawn(server)["sampling"]["guidance_schedule"] == [4.5] * 3


@pytest.mark.parametrize("value", ["jpg", "JPG", "JPEG"])
def test_jpg(server: ServerProcess, value: str) -> None:
    response = post(server, output_format=value)
    assert (codes(response), response.json()["output_format"]) == ([], "jpeg")


def test_a_seed_of_minus_one_is_random(server: ServerProcess) -> None:
    seeds = {post(server, seed=-1).json()["data"][0]["seed"] for _ in range(4)}
    assert len(seeds) == 4
    assert "-1" in error(post(server, seed=-2), "seed")


def test_text_prompt(server: ServerProcess) -> None:
    body = {"text_prompt": "a red cat", "rendering_speed": "FLASH", "magic_prompt": "AUTO", "num_images": 1}
    response = server.http.post("/v1/images", json=body)
    assert codes(response) == []
    assert response.json()["usage"]["input_tokens"] == 3
    assert len(drawn(server)["sampling"]["guidance_schedule"]) == 12
    both = server.http.post("/v1/images", json={"text_prompt": "a", "prompt": "b"})
    assert "`text_prompt`" in error(both, "prompt")


def test_an_empty_prompt_is_absent(server: ServerProcess) -> None:
    """The OpenAI clients require `prompt`."""
    caption = {
        "compositional_deconstruction": {"background": "sky", "elements": [{"type": "obj", "desc": "a"}]}
    }
    assert codes(post(server, prompt="", json_prompt=caption)) == []
    assert "`json_prompt`" in error(post(server, prompt=""), "prompt")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"steps": 500}, "steps"),
        ({"steps": 2, "num_inference_steps": 3}, "num_inference_steps"),
        ({"num_images": 11}, "num_images"),
        ({"resolution": "1x1"}, "resolution"),
        ({"extra_body": {"seed": 1}, "seed": 2}, "seed"),
        ({"extra_body": {"json_prompt": {}}}, "extra_body"),
        ({"true_cfg_scale": 30}, "true_cfg_scale"),
    ],
    ids=str,
)
def test_errors_name_the_field_that_was_sent(server: ServerProcess, body: dict[str, Any], param: str) -> None:
    error(post(server, **body), param)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("num_inference_step", "`num_inference_steps`"),
        ("Prompt", "`prompt`"),
        ("guidance_scales", "`guidance_scale`"),
        ("negative-prompt", "`negative_prompt`"),
        ("zzz", "Unknown parameter."),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_unknown_fields_name_the_nearest(server: ServerProcess, name: str, hint: str, nested: bool) -> None:
    body: dict[str, Any] = {"extra_body": {name: 1}} if nested else {name: 1}
    assert hint in error(post(server, **body), name, "unknown_parameter")


def test_a_blank_negative_prompt_needs_no_warning(server: ServerProcess) -> None:
    assert codes(post(server, negative_prompt=" ")) == []
    assert codes(post(server, negative_prompt="blurry")) == ["parameter_ignored"]


def test_warnings_come_with_images_and_streams_too(server: ServerProcess) -> None:
    image = server.create({"Accept": "image/png"}, style="vivid", seed=2**40)
    assert image.headers["x-warnings"] == "parameter_ignored, seed_reduced"
    stream = server.create(stream=True, style="vivid")
    assert "parameter_ignored" in stream.text


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_of_the_table(server: ServerProcess, name: str) -> None:
    match FIELDS[name]:
        case Ignore():
            response = post(server, **{name: "x"})
            assert codes(response) == ["parameter_ignored"]
            assert f"`{name}`" in response.json()["warnings"][0]["message"]
        case Refuse(reason):
            assert error(post(server, **{name: 1}), name, "unknown_parameter") == reason
            assert codes(post(server, **{name: None})) == []
        case Use(target):
            assert target in ImageRequest.model_fields
            assert codes(post(server, **{name: ""})) == []
        case Merge():
            assert codes(post(server, **{name: {}})) == []
            error(post(server, **{name: [1]}), name, "invalid_type")


def test_the_tables_name_fields_of_the_request() -> None:
    assert VALUES.keys() | set(INTEGERS) | set(NUMBERS) <= EditRequest.model_fields.keys()
    properties = EditRequest.model_json_schema()["properties"]
    kinds = {name: schema["anyOf"][0].get("type") for name, schema in properties.items() if "anyOf" in schema}
    own = {name: kind for name, kind in kinds.items() if name not in EditRequest.dialects}
    assert {name for name, kind in own.items() if kind == "integer"} == set(INTEGERS)
    assert {name for name, kind in own.items() if kind == "number"} == set(NUMBERS)


def test_the_documentation_has_the_table() -> None:
    section = (REPOSITORY / "docs" / "http.md").read_text("utf-8").partition("## Compatibility")[2]
    section = section.partition("\n## ")[0]
    named = set(re.findall(r"`([A-Za-z_]+)`", section))
    assert FIELDS.keys() <= named
    assert {value for values in VALUES.values() for value in values} <= named


@pytest.mark.parametrize(
    ("size", "made"),
    [("64*96", "64x96"), ("64X96", "64x96"), ("auto", "128x128"), ("16:9", "176x96"), ("1:1", "128x128")],
)
def test_sizes_as_clients_write_them(server: ServerProcess, size: str, made: str) -> None:
    response = post(server, size=size)
    assert (codes(response), response.json()["size"]) == ([], made)


@pytest.mark.parametrize(
    ("body", "param", "nearest"),
    [
        ({"size": "100000x10000"}, "size", "240x80"),
        ({"size": "100x100"}, "size", "96x96"),
        ({"size": "10:1"}, "size", "240x80"),
        ({"aspect_ratio": "1:9"}, "aspect_ratio", "80x240"),
        ({"width": 65, "height": 64}, "width", "64x64"),
        ({"width": 64, "height": 300}, "height", "80x240"),
    ],
    ids=str,
)
def test_sizes_that_are_not_allowed(
    server: ServerProcess, body: dict[str, Any], param: str, nearest: str
) -> None:
    message = error(post(server, **body), param)
    for part in ("multiples of 16 from 64 to 256", "3:1", nearest, "`size_policy`"):
        assert part in message
    response = post(server, **body, size_policy="nearest")
    assert (codes(response), response.json()["size"]) == (["size_rounded"], nearest)
    assert nearest in response.json()["warnings"][0]["message"]


def test_the_default_size_policy(start: Callable[..., ServerProcess]) -> None:
    server = start("--size-policy", "nearest")
    assert post(server, size="1920x1080").json()["size"] == "256x144"
    error(post(server, size="1920x1080", size_policy="strict"), "size")


limits = st.builds(
    lambda low, high, step, ratio: Limits(low * step, max(low, high) * step, step, ratio),
    st.integers(1, 40),
    st.integers(1, 128),
    st.sampled_from([1, 8, 16, 32]),
    st.floats(1, 10),
)


@given(limits, st.integers(0, 10**6), st.integers(0, 10**6))
def test_the_nearest_size_is_allowed(limits: Limits, width: int, height: int) -> None:
    nearest = sizes.nearest(Size(width, height), limits)
    assert sizes.is_allowed(nearest, limits)
    assert sizes.nearest(nearest, limits) == nearest


def test_the_nearest_size_of_a_full_hd_screen() -> None:
    assert sizes.nearest(Size(1920, 1080), Limits()) == (1920, 1088)
    assert sizes.nearest(Size(1080, 1920), Limits()) == (1088, 1920)


def test_model_aliases(start: Callable[..., ServerProcess]) -> None:
    server = start("--model-alias", "dall-e-3,gpt-image-1")
    for name in ("dall-e-3", "gpt-image-1", "fake-model"):
        response = post(server, model=name)
        assert (response.status_code, response.json()["model"]) == (200, "fake-model")
        model = server.http.get(f"/v1/models/{name}").json()
        assert (model["id"], model["root"]) == (name, "fake-model")
    listed = server.http.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["fake-model", "dall-e-3", "gpt-image-1"]
    for response in (post(server, model="dall-e-2"), server.http.get("/v1/models/dall-e-2")):
        message = error(response, "model", "model_not_found", 404)
        assert all(f"`{name}`" in message for name in ("fake-model", "dall-e-3", "gpt-image-1"))


@pytest.fixture(scope="module")
def aliased() -> Any:
    process = ServerProcess("--model-alias", "dall-e-2,dall-e-3,gpt-image-1", "--size-policy", "nearest")
    yield process
    process.close()


@pytest.mark.parametrize("case", BODIES, ids=lambda case: case["client"])
def test_bodies_of_clients(aliased: ServerProcess, case: dict[str, Any]) -> None:
    response = aliased.http.post("/v1/images/generations", json=case["body"])
    assert response.status_code == case["status"], response.text
    if case["status"] == 200:
        assert codes(response) == case["warnings"]
    else:
        assert case["message"] in error(response, case["param"])
