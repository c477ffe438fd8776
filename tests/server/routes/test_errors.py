"""The error responses of docs/http.md, and the rules of each field."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.server import sse
from tests.server.process import HANG, ServerProcess, small

Start = Callable[..., ServerProcess]


def check(response: httpx.Response, status: int, code: str, param: str | None = None) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    assert response.headers["cache-control"] == "no-store"
    body: dict[str, Any] = response.json()
    assert body.keys() == {"error"}
    error: dict[str, Any] = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param)
    assert error["message"]
    return error


def post(server: ServerProcess, body: bytes | str, content_type: str = "application/json") -> httpx.Response:
    return server.http.post("/v1/images", content=body, headers={"Content-Type": content_type})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"prompt": NaN}',
        b'{"prompt": "a", "mu": Infinity}',
        b'{"prompt": "\xff"}',
        b'{"prompt": "\\ud800"}',
        b'{"json_prompt": {"a": ["\\udfff"]}}',
        b'{"\\ud800": 1}',
        b'{"prompt": "a", "json_prompt": ' + b'{"a":' * 5000 + b"1" + b"}" * 5001,
        b"[" * 100_000,
        b'{"prompt": "a"} x',
    ],
    ids=range(11),
)
def test_bad_json(server: ServerProcess, body: bytes) -> None:
    check(post(server, body), 400, "invalid_json")


def test_unknown_parameter(server: ServerProcess) -> None:
    check(server.create(cat=3), 400, "unknown_parameter", "cat")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", 1),
        ("prompt", ["a"]),
        ("json_prompt", "a"),
        ("json_prompt", [1]),
        ("n", "one"),
        ("n", 1.5),
        ("n", True),
        ("size", 64),
        ("width", "64px"),
        ("seed", "1.5"),
        ("preset", 1),
        ("quality", 1),
        ("rendering_speed", ["TURBO"]),
        ("guidance_scale", "7 or so"),
        ("guidance_schedule", 7),
        ("mu", True),
        ("output_format", 1),
        ("stream", 1),
        ("stream", "true"),
        ("partial_images", "+1"),
        ("user", 1),
    ],
)
def test_wrong_type(server: ServerProcess, field: str, value: Any) -> None:
    check(server.create(**{"prompt": "a", field: value}), 400, "invalid_type", field)


@pytest.mark.parametrize("body", ["[]", "1", '"a"', "null", "true"])
def test_body_that_is_no_object(server: ServerProcess, body: str) -> None:
    check(post(server, body), 400, "invalid_type")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": "a", "json_prompt": {}}, "prompt"),
        ({"n": 0}, "n"),
        ({"n": 11}, "n"),
        ({"n": 10**400}, "n"),
        ({"size": "64"}, "size"),
        ({"size": "64x65"}, "size"),
        ({"size": "48x64"}, "size"),
        ({"size": "64x272"}, "size"),
        ({"size": "-64x64"}, "size"),
        ({"size": "64x64\n"}, "size"),
        ({"size": "٦٤x٦٤"}, "size"),
        ({"size": "64x64", "width": 64, "height": 64}, "size"),
        ({"size": None, "width": 64}, "height"),
        ({"size": None, "height": 64}, "width"),
        ({"size": None, "width": 65, "height": 64}, "width"),
        ({"size": None, "width": 64, "height": 9999}, "height"),
        ({"preset": "V3"}, "preset"),
        ({"rendering_speed": "turbo"}, "rendering_speed"),
        ({"quality": "best"}, "quality"),
        ({"preset": "V4_TURBO_12", "quality": "high"}, "quality"),
        ({"rendering_speed": "TURBO", "quality": "high"}, "quality"),
        ({"preset": "V4_TURBO_12", "rendering_speed": "QUALITY"}, "rendering_speed"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": 101}, "num_inference_steps"),
        ({"guidance_scale": 0.5}, "guidance_scale"),
        ({"guidance_scale": 21}, "guidance_scale"),
        ({"guidance_schedule": []}, "guidance_schedule"),
        ({"guidance_schedule": [1] * 101}, "guidance_schedule"),
        ({"guidance_schedule": [1, 21]}, "guidance_schedule.1"),
        ({"guidance_schedule": [1, 2], "num_inference_steps": 3}, "guidance_schedule"),
        ({"guidance_schedule": [1, 2], "guidance_scale": 3}, "guidance_scale"),
        ({"std": 0}, "std"),
        ({"seed": -2}, "seed"),
        ({"seed": 10**20}, "seed"),
        ({"size": None, "aspect_ratio": "wide"}, "aspect_ratio"),
        ({"size": "0:9"}, "size"),
        ({"output_format": "gif"}, "output_format"),
        ({"output_compression": 101}, "output_compression"),
        ({"response_format": "url"}, "response_format"),
        ({"background": "transparent"}, "background"),
        ({"partial_images": 4, "stream": True}, "partial_images"),
        ({"partial_images": 1}, "partial_images"),
    ],
    ids=str,
)
def test_bad_value(server: ServerProcess, fields: dict[str, Any], param: str) -> None:
    check(server.create(**{"prompt": "a", **fields}), 400, "invalid_value", param)


@pytest.mark.parametrize("field", ["mu", "guidance_scale", "std"])
def test_number_beyond_a_float(server: ServerProcess, field: str) -> None:
    check(post(server, f'{{"prompt": "a", "{field}": 1e400}}'), 400, "invalid_value", field)


@pytest.mark.parametrize("number", ["1e400", "9" * 5000])
def test_number_of_a_caption_out_of_range(server: ServerProcess, number: str) -> None:
    response = post(server, f'{{"json_prompt": {{"a": {number}}}}}')
    assert (response.status_code, response.json()["error"]["code"] in ("invalid_value", "invalid_json")) == (
        400,
        True,
    )


def test_aspect_ratio(server: ServerProcess) -> None:
    error = check(server.create(size="256x64"), 400, "invalid_value", "size")
    assert "3:1" in error["message"]
    assert server.create(size="192x64").status_code == 200


def test_urls_need_a_store(server: ServerProcess) -> None:
    error = check(server.create(response_format="url"), 400, "invalid_value", "response_format")
    assert "--store" in error["message"]
    check(server.http.get("/v1/files/img-1-0-1000000000.png"), 404, "not_found")


def test_raw_image_needs_n_of_one(server: ServerProcess) -> None:
    check(server.create(headers={"Accept": "image/png"}, n=2), 400, "invalid_value", "n")


def test_an_error_about_tokens_names_count_and_limit(server: ServerProcess) -> None:
    error = check(server.create(prompt="a " * 2049), 400, "string_above_max_length", "prompt")
    assert "2049" in error["message"]
    assert "2048" in error["message"]


def test_prompt_of_too_many_characters(server: ServerProcess) -> None:
    check(server.create(prompt="a" * 32_001), 400, "string_above_max_length", "prompt")
    check(server.create(json_prompt={"a": "b" * 32_000}), 400, "string_above_max_length", "json_prompt")
    assert server.create(prompt="a" * 32_000).status_code == 200


def test_unknown_model(server: ServerProcess) -> None:
    check(server.create(model="dall-e-3"), 404, "model_not_found", "model")
    check(server.http.get("/v1/models/dall-e-3"), 404, "model_not_found", "model")


def test_unknown_path_and_method(server: ServerProcess) -> None:
    check(server.http.get("/v2/images"), 404, "not_found")
    response = server.http.get("/v1/images")
    check(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "OPTIONS, POST"


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/images", "OPTIONS, POST"),
        ("/v1/images/generations/", "OPTIONS, POST"),
        ("/v1/models", "GET, HEAD, OPTIONS"),
        ("/", "GET, HEAD, OPTIONS"),
        ("/docs", "GET, HEAD, OPTIONS"),
    ],
)
def test_options_lists_the_methods(server: ServerProcess, path: str, allowed: str) -> None:
    response = server.http.options(path)
    assert (response.status_code, response.headers["allow"], response.content) == (204, allowed, b"")


def test_options_of_an_unknown_path(server: ServerProcess) -> None:
    check(server.http.options("/v2/images"), 404, "not_found")


@pytest.mark.parametrize(
    "path",
    ["/", "/healthz", "/readyz", "/metrics", "/v1/models", "/v1/models/fake-model", "/openapi.json", "/docs"],
)
def test_head_is_get_without_the_body(server: ServerProcess, path: str) -> None:
    full, head = server.http.get(path), server.http.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == full.headers["content-type"]
    assert head.headers["content-length"] != "0"


def test_head_of_a_post_or_unknown_path(server: ServerProcess) -> None:
    response = server.http.head("/v1/images")
    assert (response.status_code, response.headers["allow"]) == (405, "OPTIONS, POST")
    assert server.http.head("/v2/images").status_code == 404
    assert server.logged(method="HEAD", path="/v1/images")


def test_not_acceptable(server: ServerProcess) -> None:
    check(server.create(headers={"Accept": "text/html"}), 406, "not_acceptable", "Accept")
    check(
        server.create(headers={"Accept": "image/webp"}, output_format="png"), 406, "not_acceptable", "Accept"
    )


@pytest.mark.parametrize("content_type", ["text/plain", "multipart/form-data", ""])
def test_body_that_is_not_json(server: ServerProcess, content_type: str) -> None:
    check(post(server, '{"prompt": "a"}', content_type), 415, "unsupported_media_type")


def test_compressed_body(server: ServerProcess) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    response = server.http.post("/v1/images", content=b"x", headers=headers)
    check(response, 415, "unsupported_media_type")


def test_body_too_large(start: Start) -> None:
    server = start("--max-body-bytes", "2048")
    check(server.create(prompt="a" * 2048), 413, "body_too_large")
    chunks = (b" " * 1024 for _ in range(3))
    headers = {"Content-Type": "application/json"}
    check(server.http.post("/v1/images", content=chunks, headers=headers), 413, "body_too_large")


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("X-Request-Timeout", "soon"),
        ("X-Request-Timeout", "-1"),
        ("X-Request-Timeout", "nan"),
        ("X-Priority", "vip"),
    ],
)
def test_bad_header(server: ServerProcess, header: str, value: str) -> None:
    check(server.create(headers={header: value}), 400, "invalid_value", header)


def test_queue_full_has_retry_after(start: Start) -> None:
    server = start("--max-backlog-seconds", "20", "--max-request-seconds", "9999")
    server.set(seconds_per_step=1)
    with server.http.stream("POST", "/v1/images", json=small(prompt="hold: a", stream=True)):
        server.wait(running=1)
        response = server.create(num_inference_steps=7)
        check(response, 429, "queue_full")
        assert response.headers["retry-after"] == "7"
        server.set(seconds_per_step=100)
        response = server.create(num_inference_steps=7)
        check(response, 429, "queue_full")
        assert response.headers["retry-after"] == "60"
        server.release()


def test_a_request_above_the_limit_is_admitted_to_an_idle_device(start: Start) -> None:
    server = start("--max-backlog-seconds", "1")
    server.set(seconds_per_step=10)
    assert server.create().status_code == 200


WHOLE_WAIT = {"X-Request-Timeout": "5", "x-envoy-expected-rq-timeout-ms": "5000"}
SDK_TIMEOUTS = {"x-stainless-read-timeout": "5.0", "X-Stainless-Timeout": "5"}


def test_deadline_unreachable(start: Start) -> None:
    server = start()
    server.set(seconds_per_step=1)
    for header, value in (WHOLE_WAIT | SDK_TIMEOUTS).items():
        response = server.create({header: value}, num_inference_steps=6)
        check(response, 429, "deadline_unreachable")
        assert response.headers["x-should-retry"] == "false"
        assert 1 <= int(response.headers["retry-after"]) <= 60
        assert server.create({header: value}, num_inference_steps=4).status_code == 200


def test_an_sdk_timeout_does_not_bound_a_stream(start: Start) -> None:
    """openai-node's ends with the response headers, openai-python's limits the silence between reads."""
    server = start()
    server.set(seconds_per_step=1)
    for header, value in SDK_TIMEOUTS.items():
        response = server.create({header: value}, num_inference_steps=6, stream=True)
        assert sse.named(response.text.split("\n"))[-1].name == "image_generation.completed"
    for header, value in WHOLE_WAIT.items():
        response = server.create({header: value}, num_inference_steps=6, stream=True)
        check(response, 429, "deadline_unreachable")


def test_a_stream_pings_within_the_clients_read_timeout(server: ServerProcess) -> None:
    """The default interval of 10 seconds would be too long."""
    body, headers = small(prompt="hold: a", stream=True), {"x-stainless-read-timeout": "1"}
    with (
        httpx.Client(base_url=server.url, timeout=httpx.Timeout(HANG, read=7)) as client,
        client.stream("POST", "/v1/images", json=body, headers=headers) as stream,
    ):
        assert ": ping" in stream.iter_lines()
    server.wait(running=0)


def test_deadline_unreachable_for_the_work_ahead(start: Start) -> None:
    server = start()
    server.set(seconds_per_step=1)
    with server.http.stream(
        "POST", "/v1/images", json=small(prompt="hold: a", num_inference_steps=20, stream=True)
    ):
        server.wait(running=1)
        response = server.create({"X-Request-Timeout": "16"}, num_inference_steps=6)
        check(response, 429, "deadline_unreachable")
        assert response.headers["retry-after"] in ("10", "11")
        assert "x-should-retry" not in response.headers
        server.release()


def test_invalid_sdk_timeouts_are_ignored(server: ServerProcess) -> None:
    headers = {"x-stainless-read-timeout": "nan", "x-envoy-expected-rq-timeout-ms": "-1"}
    assert server.create(headers).status_code == 200


@pytest.mark.parametrize(
    ("word", "status", "code"),
    [
        ("deadline", 504, "deadline_exceeded"),
        ("crash", 500, "worker_crashed"),
        ("fail", 500, "generation_failed"),
        ("bug", 500, "internal_error"),
    ],
)
def test_failures_of_the_engine(server: ServerProcess, word: str, status: int, code: str) -> None:
    response = server.create(prompt=f"{word}: a")
    check(response, status, code)
    assert response.headers["x-should-retry"] == "false"
    assert "/secret/path" not in response.text
    (event,) = sse.named(server.create(prompt=f"{word}: a", stream=True).text.split("\n"))
    assert event.name == event.data["type"] == "error"
    assert event.data["error"]["code"] == code
    assert "/secret/path" not in json.dumps(event.data)


def test_loading(start: Start) -> None:
    server = start()
    server.set(is_ready=False)
    for response in (server.create(), server.http.get("/readyz")):
        check(response, 503, "model_not_ready")
        assert 1 <= int(response.headers["retry-after"]) <= 60
        assert response.headers["connection"] == "close"
    assert server.http.get("/healthz").status_code == 200
    server.set(is_ready=True)
    assert server.http.get("/readyz").status_code == 200


def test_errors_and_logs_do_not_repeat_the_prompt(server: ServerProcess) -> None:
    secret = "zebra-in-pyjamas"
    bodies: list[dict[str, Any]] = [
        {"prompt": secret + " a" * 2049},
        {"prompt": secret + "a" * 32_000},
        {"prompt": [secret]},
        {"prompt": {"x": secret}},
        {"prompt": secret, "json_prompt": {}},
        {"prompt": secret, "quality": secret},
        {"prompt": secret, "model": secret},
        {"prompt": secret, "size": secret},
        {"prompt": secret, "user": [secret]},
        {"prompt": "fail: " + secret},
        {"prompt": "bug: " + secret},
        {"prompt": secret},
    ]
    for body in bodies:
        assert secret not in server.create(**body).text
    assert secret not in post(server, f'{{"prompt": "{secret}').text
    assert secret not in server.log
    # Messages of exceptions are not logged: they may contain a prompt.
    assert server.logged(level="error", exception="KeyError")
    assert "/secret/path" not in server.log
