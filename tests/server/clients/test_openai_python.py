"""The official `openai` Python client, unchanged."""

import asyncio
import base64
import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image

from tests.server.clients.conftest import ALIASES
from tests.server.edits.pictures import BLUE, encoded, halves, hole
from tests.server.process import HANG, ServerProcess


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any") as client:
        yield client


def check(data: str | None, colour: tuple[int, int, int]) -> None:
    assert data
    assert Image.open(io.BytesIO(base64.b64decode(data))).getpixel((0, 0)) == colour


def test_generate(client: openai.OpenAI) -> None:
    answer = client.images.generate(
        model="fake-model",
        prompt="a cat",
        n=2,
        size="128x128",
        quality="high",
        user="u",
        extra_body={"seed": 9},
    )
    assert answer.data
    check(answer.data[0].b64_json, (9, 64, 128))
    check(answer.data[1].b64_json, (10, 65, 128))
    assert (answer.quality, answer.output_format) == ("high", "png")
    assert answer.usage
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


def test_stream(client: openai.OpenAI) -> None:
    stream = client.images.generate(
        prompt="a cat", stream=True, partial_images=2, output_format="png", extra_body={"seed": 4}
    )
    events = list(stream)
    assert [event.type for event in events] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]  # type: ignore[union-attr]
    check(events[-1].b64_json, (4, 64, 128))


def test_error_in_a_stream_is_raised(client: openai.OpenAI) -> None:
    stream = client.images.generate(prompt="fail: a cat", stream=True)
    with pytest.raises(openai.APIError, match="The model failed"):
        list(stream)


def test_raw_response(client: openai.OpenAI) -> None:
    response = client.images.with_raw_response.generate(prompt="a cat", extra_body={"seed": 7})
    answer = response.parse()
    assert answer._request_id == response.headers["x-request-id"]
    assert answer.data
    check(answer.data[0].b64_json, (7, 64, 128))


def test_raw_response_is_an_image_file(client: openai.OpenAI) -> None:
    response = client.images.with_raw_response.generate(
        prompt="a cat", extra_headers={"Accept": "image/png"}, extra_body={"seed": 8}
    )
    assert response.headers["x-seed"] == "8"
    assert Image.open(io.BytesIO(response.content)).getpixel((0, 0)) == (8, 64, 128)


def test_streaming_response_is_an_image_file(client: openai.OpenAI) -> None:
    with client.images.with_streaming_response.generate(
        prompt="a cat", extra_headers={"Accept": "image/webp"}, extra_body={"seed": 8}
    ) as response:
        data = b"".join(response.iter_bytes())
    assert Image.open(io.BytesIO(data)).format == "WEBP"


def test_streaming_response_of_events(client: openai.OpenAI) -> None:
    with client.images.with_streaming_response.generate(prompt="a cat", stream=True) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert [event.type for event in response.parse()] == ["image_generation.completed"]


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["fake-model", *ALIASES]
    assert client.models.retrieve("fake-model").object == "model"
    assert client.images.generate(model="dall-e-3", prompt="a cat").data


ERRORS: list[tuple[type[openai.APIStatusError], str, str | None, dict[str, Any]]] = [
    (openai.BadRequestError, "invalid_value", "size", {"size": "1x1"}),
    (openai.BadRequestError, "unknown_parameter", "whatever", {"extra_body": {"whatever": 1}}),
    (openai.NotFoundError, "model_not_found", "model", {"model": "other"}),
    (openai.UnprocessableEntityError, "idempotency_key_reused", "Idempotency-Key", {"prompt": "a dog"}),
    (openai.InternalServerError, "generation_failed", None, {"prompt": "fail: a"}),
    (openai.InternalServerError, "deadline_exceeded", None, {"prompt": "deadline: a"}),
]


@pytest.mark.parametrize(("expected", "code", "param", "options"), ERRORS)
def test_errors_have_their_classes_and_are_not_retried(
    client: openai.OpenAI,
    expected: type[openai.APIStatusError],
    code: str,
    param: str | None,
    options: dict[str, Any],
) -> None:
    headers = {"Idempotency-Key": "taken"} if param == "Idempotency-Key" else {}
    client.images.generate(prompt="a cat", extra_headers=headers)
    with pytest.raises(expected) as caught:
        client.images.generate(**{"prompt": "a cat", "extra_headers": headers, **options})
    assert (caught.value.code, caught.value.param) == (code, param)
    assert caught.value.request_id == caught.value.response.headers["x-request-id"]
    assert caught.value.response.request.headers["x-stainless-retry-count"] == "0"


def test_errors_of_keys_have_their_classes(start: Callable[..., ServerProcess], tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"keys": [{"name": "web", "key": "secret", "priorities": ["batch"]}]}))
    url = start("--api-keys-file", str(keys)).url + "/v1"
    with openai.OpenAI(base_url=url, api_key="wrong") as client, pytest.raises(openai.AuthenticationError):
        client.images.generate(prompt="a cat")
    with openai.OpenAI(base_url=url, api_key="secret") as client:
        assert client.images.generate(prompt="a cat").data
        with pytest.raises(openai.PermissionDeniedError):
            client.images.generate(prompt="a cat", extra_headers={"X-Priority": "interactive"})


def test_edits(client: openai.OpenAI, tmp_path: Path) -> None:
    """A file, a list, bytes with a mask, and fields of this API."""
    file, mask = tmp_path / "a.png", encoded(hole(128, 128, (0, 0, 64, 128)))
    file.write_bytes(encoded(halves(128, 128)))
    options: Any = {"prompt": "a cat", "extra_body": {"seed": 9, "strength": 1}}
    with file.open("rb") as opened:
        check(client.images.edit(image=opened, size="128x128", **options).data[0].b64_json, (9, 64, 128))
    several = [("a.png", file.read_bytes()), ("b.png", file.read_bytes())]
    check(client.images.edit(image=several, **options).data[0].b64_json, (9, 64, 128))
    answer = client.images.edit(image=file, mask=mask, n=2, quality="low", input_fidelity="high", **options)
    assert answer.usage
    assert answer.usage.input_tokens_details.image_tokens == 64
    for image in answer.data or ():
        data = Image.open(io.BytesIO(base64.b64decode(image.b64_json or "")))
        assert data.getpixel((120, 64)) == BLUE
    kept = {"expand": {"left": 64}, "feather": 0, "strength": 0.5}
    wide = client.images.edit(image=file, prompt="a cat", extra_body=kept)
    assert wide.size == "192x128"


def test_streamed_edit(client: openai.OpenAI) -> None:
    image = encoded(halves(128, 128))
    events = list(client.images.edit(image=image, prompt="a cat", stream=True, partial_images=1))
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]


def test_variation(client: openai.OpenAI) -> None:
    with pytest.deprecated_call():
        answer = client.images.create_variation(image=encoded(halves(128, 128)), n=2, size="256x256")
    assert len(answer.data or ()) == 2


def test_bad_edits_have_their_classes(client: openai.OpenAI) -> None:
    for image, code in ((b"", "invalid_image"), (encoded(halves()), "invalid_value")):
        with pytest.raises(openai.BadRequestError) as caught:
            client.images.edit(image=image, prompt="a cat", size="1x1" if image else "auto")
        assert (caught.value.code, caught.value.param) == (code, "size" if image else "image")


def test_a_refusal_for_lack_of_capacity_is_retried(start: Callable[..., ServerProcess]) -> None:
    """After `Retry-After`."""
    server = start("--max-backlog-seconds", "1")
    server.set(seconds_per_step=0.04)
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=100)
    with client, ThreadPoolExecutor() as pool:
        first = pool.submit(client.images.generate, prompt="hold: a")
        server.wait(running=1)
        second = pool.submit(client.images.generate, prompt="a cat")
        server.logged(outcome="queue_full")
        server.release()
        assert first.result().data
        assert second.result().data


def test_the_clients_timeout_is_the_deadline(server: ServerProcess, client: openai.OpenAI) -> None:
    server.set(seconds_per_step=100)
    with pytest.raises(openai.RateLimitError) as caught:
        client.images.generate(prompt="a", timeout=openai.Timeout(600, read=180))
    server.set(seconds_per_step=0.1)
    assert caught.value.code == "deadline_unreachable"


def test_the_read_timeout_does_not_limit_a_stream(server: ServerProcess, client: openai.OpenAI) -> None:
    """It limits silence, which pings end in time."""
    client = client.with_options(timeout=openai.Timeout(HANG, read=2), max_retries=0)
    stream = client.images.generate(prompt="hold: a", stream=True, extra_body={"num_inference_steps": 100})
    with ThreadPoolExecutor() as pool:
        events = pool.submit(list, stream)
        with pytest.raises(TimeoutError):
            events.result(3)
        server.release()
        assert len(events.result()) == 1


def test_a_timeout_aborts_the_request(start: Callable[..., ServerProcess]) -> None:
    server = start()
    untold = {"x-stainless-read-timeout": openai.Omit()}
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)
    with client, pytest.raises(openai.APITimeoutError):
        client.images.generate(prompt="hold: a", timeout=1, extra_headers=untold)
    server.wait(aborted=1)


def test_leaving_a_stream_aborts_the_request(start: Callable[..., ServerProcess]) -> None:
    server = start()
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="any")
    with client, client.images.generate(prompt="hold: a", stream=True, partial_images=1) as stream:
        assert next(iter(stream)).type == "image_generation.partial_image"
    server.wait(aborted=1)


async def _generate(url: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any") as client:
        answer = await client.images.generate(prompt="a cat", extra_body={"seed": 3})
        assert answer.data
        check(answer.data[0].b64_json, (3, 64, 128))
        stream = await client.images.generate(prompt="a cat", stream=True, partial_images=1)
        assert [event.type async for event in stream] == [
            "image_generation.partial_image",
            "image_generation.completed",
        ]


def test_async_client(server: ServerProcess) -> None:
    asyncio.run(_generate(server.url))
