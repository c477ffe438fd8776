"""`POST /v1/images` with valid requests."""

import base64
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from PIL import Image

from tests.server import sse
from tests.server.process import ServerProcess, small


def picture(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def last_request(server: ServerProcess) -> dict[str, Any]:
    request: dict[str, Any] = server.state()["requests"][-1]
    return request


@pytest.mark.parametrize("path", ["/v1/images", "/v1/images/generations"])
def test_json_response_has_every_field_of_the_contract(server: ServerProcess, path: str) -> None:
    response = server.http.post(path, json=small(prompt="a red cat", seed=7, size="64x80"))
    assert response.status_code == 200
    body = response.json()
    data = body.pop("data")
    assert body.pop("id").startswith("img-")
    assert body.pop("created") > 1_700_000_000
    assert body == {
        "model": "fake-model",
        "output_format": "png",
        "quality": "medium",
        "size": "64x80",
        "background": "opaque",
        "usage": {
            "input_tokens": 3,
            "input_tokens_details": {"image_tokens": 0, "text_tokens": 3},
            "output_tokens": 20,
            "total_tokens": 23,
        },
    }
    assert [image["seed"] for image in data] == [7]
    image = picture(base64.b64decode(data[0]["b64_json"]))
    assert (image.format, image.size, image.getpixel((0, 0))) == ("PNG", (64, 80), (7, 64, 128))


def test_every_response_has_the_common_headers(server: ServerProcess) -> None:
    for response in (
        server.create(),
        server.create(size="1x1"),
        server.http.get("/healthz"),
        server.http.get("/x"),
    ):
        assert response.headers["x-request-id"]
        assert response.headers["cache-control"] == "no-store"
        assert "dur=" in response.headers["server-timing"]
    timing = server.create().headers["server-timing"]
    assert [part.partition(";")[0].strip() for part in timing.split(",")] == [
        "queue",
        "encode",
        "denoise",
        "decode",
        "image",
        "total",
    ]


@pytest.mark.parametrize(
    ("sent", "is_echoed"), [("a.B-9_", True), ("x" * 128, True), ("x" * 129, False), ("a b", False)]
)
def test_request_id_is_echoed_if_it_is_well_formed(server: ServerProcess, sent: str, is_echoed: bool) -> None:
    response = server.create(headers={"X-Request-Id": sent})
    assert (response.headers["x-request-id"] == sent) is is_echoed


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_raw_image_in_each_format(server: ServerProcess, kind: str) -> None:
    response = server.create(headers={"Accept": "image/*"}, output_format=kind, seed=11)
    assert response.headers["content-type"] == f"image/{kind}"
    assert response.headers["x-seed"] == "11"
    image = picture(response.content)
    assert image.format == kind.upper()
    pixel = image.getpixel((9, 9))
    assert isinstance(pixel, tuple)
    assert all(abs(got - want) < 6 for got, want in zip(pixel, (11, 64, 128), strict=True))


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("application/json", "application/json"),
        ("image/webp", "image/webp"),
        ("image/jpeg, application/json", "image/jpeg"),
        ("image/jpeg;q=0.5, application/json", "application/json"),
        ("text/html, image/avif, image/*;q=0.8", "image/png"),
        ("text/event-stream", "text/event-stream; charset=utf-8"),
    ],
)
def test_accept_selects_the_response_format(
    server: ServerProcess, accept: str | None, content_type: str
) -> None:
    request = server.http.build_request("POST", "/v1/images", json=small())
    del request.headers["accept"]
    if accept:
        request.headers["accept"] = accept
    response = server.http.send(request)
    assert (response.status_code, response.headers["content-type"]) == (200, content_type)


def test_jpeg_compression_changes_the_size(server: ServerProcess) -> None:
    def size(quality: int) -> int:
        body = {"prompt": "noise: x", "size": "256x256", "output_compression": quality}
        return len(server.create({"Accept": "image/jpeg"}, **body).content)

    assert size(5) < size(100)


@pytest.mark.parametrize("fields", [{"stream": True}, {}])
def test_stream(server: ServerProcess, fields: dict[str, Any]) -> None:
    accept = "application/json" if fields else "text/event-stream"
    body = small(n=2, seed=5, partial_images=2, **fields)
    response = server.http.post("/v1/images", json=body, headers={"Accept": accept})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-accel-buffering"] == "no"
    events = list(sse.read(response.text.split("\n")))
    assert events[0] == sse.Event("", "accepted")
    assert "progress 0 1/20" in [event.data for event in events if not event.name]
    partial, completed = "image_generation.partial_image", "image_generation.completed"
    images = [event for event in events if event.name]
    assert [event.name for event in images] == [partial, partial, completed] * 2
    assert all(event.data["type"] == event.name for event in images)
    assert [event.data["image_index"] for event in images] == [0, 0, 0, 1, 1, 1]
    assert [event.data["partial_image_index"] for event in images if event.name == partial] == [0, 1, 0, 1]
    assert [event.data["seed"] for event in images if event.name == completed] == [5, 6]
    last = images[-1].data
    assert picture(base64.b64decode(last["b64_json"])).getpixel((0, 0)) == (6, 65, 128)
    assert {"created_at", "size", "quality", "background", "output_format", "usage"} <= last.keys()
    preview = images[0].data
    assert picture(base64.b64decode(preview["b64_json"])).format == preview["output_format"].upper()


def test_a_silent_stream_is_pinged(start: Callable[..., ServerProcess]) -> None:
    server = start("--ping-seconds", "0.05")
    with server.http.stream("POST", "/v1/images", json=small(prompt="hold: a", stream=True)) as response:
        comments = (event.data for event in sse.read(response.iter_lines()) if not event.name)
        assert [next(comments) for _ in range(4)] == ["accepted", "progress 0 1/20", "ping", "ping"]


def test_progress_events_only_where_asked_for(server: ServerProcess) -> None:
    def names(**fields: Any) -> set[str]:
        return {event.name for event in sse.named(server.create(stream=True, **fields).text.split("\n"))}

    assert "image_generation.progress" in names(progress=True)
    assert "image_generation.progress" not in names()


@pytest.mark.parametrize(
    ("fields", "steps"),
    [
        ({}, 20),
        ({"preset": "V4_TURBO_12"}, 12),
        ({"rendering_speed": "QUALITY"}, 48),
        ({"quality": "low"}, 12),
        ({"quality": "medium"}, 20),
        ({"quality": "standard"}, 20),
        ({"quality": "auto"}, 20),
        ({"quality": "high"}, 48),
        ({"quality": "hd"}, 48),
        ({"quality": "hd", "rendering_speed": "QUALITY", "preset": "V4_QUALITY_48"}, 48),
        ({"quality": "auto", "preset": "V4_TURBO_12"}, 12),
        ({"num_inference_steps": 3}, 3),
        ({"guidance_schedule": [1, 2.5]}, 2),
    ],
)
def test_presets_by_their_three_fields(server: ServerProcess, fields: dict[str, Any], steps: int) -> None:
    assert server.create(**fields).status_code == 200
    assert len(last_request(server)["sampling"]["guidance_schedule"]) == steps


def test_sampling_parameters_reach_the_engine(server: ServerProcess) -> None:
    server.create(preset="V4_TURBO_12", mu=0.25, std=1.5, guidance_scale=4, num_inference_steps=3)
    assert last_request(server)["sampling"] == {"guidance_schedule": [4, 4, 4], "mu": 0.25, "std": 1.5}
    server.create(guidance_schedule=[5, 1])
    assert last_request(server)["sampling"]["guidance_schedule"] == [5, 1]
    server.create(num_inference_steps=10)
    assert last_request(server)["sampling"]["guidance_schedule"] == [7.0] * 9 + [3.0]


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({}, (128, 128)),
        ({"size": "auto"}, (128, 128)),
        ({"size": "192x64"}, (192, 64)),
        ({"width": 64, "height": 96}, (64, 96)),
        ({"size": None, "width": 64, "height": 96}, (64, 96)),
    ],
)
def test_sizes(server: ServerProcess, fields: dict[str, Any], size: tuple[int, int]) -> None:
    assert server.http.post("/v1/images", json={"prompt": "a cat", **fields}).status_code == 200
    assert (last_request(server)["width"], last_request(server)["height"]) == size


def test_seeds(server: ServerProcess) -> None:
    data = server.create(n=3, seed=2**31 - 2).json()["data"]
    assert [image["seed"] for image in data] == [2**31 - 2, 2**31 - 1, 0]
    random = {server.create().json()["data"][0]["seed"] for _ in range(4)}
    assert len(random) == 4
    assert all(0 <= seed < 2**31 for seed in random)


def test_null_is_absent(server: ServerProcess) -> None:
    schema = server.http.get("/openapi.json").json()["components"]["schemas"]["ImageRequest"]
    nulls = dict.fromkeys(schema["properties"], None)
    assert server.http.post("/v1/images", json=nulls | {"prompt": "a cat"}).status_code == 200


def test_ignored_fields_are_accepted(server: ServerProcess) -> None:
    response = server.create(
        user="u", safety_identifier="s", moderation="low", style="vivid", background="auto"
    )
    assert response.status_code == 200


def test_caption_object_is_the_same_as_its_compact_json(server: ServerProcess) -> None:
    caption = {"subject": "grüße 🐈", "parts": [1, {"a": None}]}
    server.create(json_prompt=caption)
    as_object = last_request(server)["token_ids"]
    server.create(prompt='{"subject":"grüße 🐈","parts":[1,{"a":null}]}')
    assert last_request(server)["token_ids"] == as_object


def test_models(server: ServerProcess) -> None:
    listed = server.http.get("/v1/models").json()
    one = server.http.get("/v1/models/fake-model").json()
    assert listed == {"object": "list", "data": [one]}
    assert one["object"] == "model"
    assert one["precision"] == {"weights": "fp8", "widened": True, "matmul": "exact", "dtype": "bfloat16"}
    assert one["limits"] == {
        "min_size": 64,
        "max_size": 256,
        "multiple_of": 16,
        "max_aspect_ratio": 3.0,
        "max_prompt_tokens": 2048,
        "max_n": 10,
    }
    assert set(one["presets"]) == {"V4_QUALITY_48", "V4_DEFAULT_20", "V4_TURBO_12"}


def test_the_time_is_estimated_without_an_image(start: Callable[..., ServerProcess]) -> None:
    server = start()

    def estimate(**body: Any) -> Any:
        return server.http.post("/v1/images/estimate", json=small(**body)).json()

    assert estimate() == {"seconds": 2.0, "ahead_seconds": 0.0, "device_seconds": 2.0}
    with ThreadPoolExecutor() as pool:
        running = pool.submit(server.create, prompt="hold: a")
        server.wait(running=1)
        busy = estimate(preset="V4_TURBO_12")
        server.release()
        assert running.result().status_code == 200
    assert busy == {"seconds": 3.2, "ahead_seconds": 2.0, "device_seconds": 1.2}
    assert estimate(seed=-5)["error"]["param"] == "seed"
    assert len(server.state()["requests"]) == 1
