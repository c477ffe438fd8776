"""The official `openai` Python client, unchanged."""

import asyncio
import base64
import io
from collections.abc import Iterator

import openai
import pytest
from PIL import Image

from tests.server.process import ServerProcess


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


def test_raw_bytes(client: openai.OpenAI) -> None:
    response = client.images.with_raw_response.generate(
        prompt="a cat", extra_headers={"Accept": "image/png"}, extra_body={"seed": 8}
    )
    assert response.headers["x-seed"] == "8"
    assert Image.open(io.BytesIO(response.content)).getpixel((0, 0)) == (8, 64, 128)


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["fake-model"]
    assert client.models.retrieve("fake-model").object == "model"


def test_errors_have_their_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt="a", size="1x1")
    assert (caught.value.code, caught.value.param) == ("invalid_value", "size")
    with pytest.raises(openai.NotFoundError):
        client.images.generate(prompt="a", model="dall-e-2")


def test_no_retry_where_it_would_burn_device_time(server: ServerProcess, client: openai.OpenAI) -> None:
    before = len(server.state()["requests"])
    with pytest.raises(openai.InternalServerError):
        client.images.generate(prompt="deadline: a")
    assert len(server.state()["requests"]) == before + 1


def test_the_clients_timeout_is_the_deadline(server: ServerProcess, client: openai.OpenAI) -> None:
    server.set(seconds_per_step=100)
    with pytest.raises(openai.RateLimitError) as caught:
        client.images.generate(prompt="a", timeout=openai.Timeout(600, read=180))
    server.set(seconds_per_step=0.1)
    assert caught.value.code == "deadline_unreachable"


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
