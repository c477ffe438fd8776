"""`generateImage` of the AI SDK with the providers `openai` and `openai-compatible`, unchanged."""

from typing import Any

import pytest

from tests.server.clients.programs import run_node
from tests.server.process import ServerProcess, until

PNG, JPEG = "image/png", "image/jpeg"


@pytest.fixture(scope="module")
def seen(server: ServerProcess) -> Any:
    return run_node("use_ai_sdk.js", server)


def image(size: str = "128x128", quality: str = "medium") -> dict[str, str]:
    return {"size": size, "quality": quality}


def test_default(seen: Any) -> None:
    assert seen["default"] == {
        "types": [PNG],
        "distinct": 1,
        "requests": 1,
        "tokens": 66,
        "metadata": [image()],
        "warnings": [],
    }


def test_options(seen: Any) -> None:
    """The provider drops `seed`, and sends one request per image for a model that it does not know."""
    assert seen["options"] == {
        "types": [JPEG] * 2,
        "distinct": 2,
        "requests": 2,
        "tokens": 2 * (2 + 32),
        "metadata": [image("128x64", "high")] * 2,
        "warnings": ["seed"] * 2,
    }


def test_a_known_model_makes_several_images_per_request(seen: Any) -> None:
    assert (seen["alias"]["requests"], seen["alias"]["distinct"]) == (1, 2)


def test_the_compatible_provider_passes_fields_on(seen: Any, server: ServerProcess) -> None:
    assert seen["compatible"] == {
        "types": [PNG] * 2,
        "distinct": 2,
        "requests": 1,
        "tokens": 66,
        "warnings": [],
    }
    made = [request for request in server.state()["requests"] if request["seeds"] == [5, 6]]
    assert [(each["width"], len(each["sampling"]["guidance_schedule"])) for each in made] == [(128, 12)]


def test_aspect_ratio_is_dropped_by_the_client(seen: Any) -> None:
    assert seen["aspectRatio"]["warnings"] == ["aspectRatio"]


def test_errors(seen: Any) -> None:
    call = {"name": "AI_APICallError", "isRetryable": False}
    assert seen["size"] == {**call, "statusCode": 400, "code": "invalid_value"}
    assert seen["model"] == {**call, "statusCode": 404, "code": "model_not_found"}


def test_the_client_retries_every_error_of_500_and_above(seen: Any, server: ServerProcess) -> None:
    """It does not read `x-should-retry`; `maxRetries: 0` is the way out."""
    assert seen["deadline"]["isRetryable"]
    assert seen["retried"] == {"name": "AI_RetryError", "reason": "maxRetriesExceeded"}
    until(lambda: len(server.log_lines(outcome="deadline_exceeded")) == 1 + 2)
