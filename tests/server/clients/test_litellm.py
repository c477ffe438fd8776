"""LiteLLM's `image_generation`, unchanged."""

from typing import Any

import pytest

from tests.server.clients.programs import run_python
from tests.server.process import ServerProcess

PNG, JPEG = "89504e47", "ffd8ffe0"


@pytest.fixture(scope="module")
def seen(server: ServerProcess) -> Any:
    return run_python("use_litellm.py", server)


@pytest.mark.parametrize("call", ["default", "async", "alias"])
def test_images(seen: Any, call: str) -> None:
    assert seen[call] == {
        "files": [PNG],
        "size": "128x128",
        "quality": "medium",
        "output_format": "png",
        "tokens": [2, 64, 66],
    }


def test_options(seen: Any, server: ServerProcess) -> None:
    assert seen["options"] == {
        "files": [JPEG] * 2,
        "size": "128x64",
        "quality": "high",
        "output_format": "jpeg",
        "tokens": [2, 64, 66],
    }
    assert [5, 6] in [request["seeds"] for request in server.state()["requests"]]


ERRORS = {
    "size": ("BadRequestError", 400, "Width and height must be multiples of 16 from 64 to 2048"),
    "model": ("NotFoundError", 404, "`fake-model`"),
    "failure": ("InternalServerError", 500, "The model failed"),
    "deadline": ("Timeout", 504, "The deadline passed"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_have_their_classes_and_the_servers_message(seen: Any, case: str) -> None:
    name, status, message = ERRORS[case]
    assert (seen[case]["class"], seen[case]["status"]) == (name, status)
    assert message in seen[case]["message"]


def test_errors_that_cost_device_time_are_not_retried(seen: Any, server: ServerProcess) -> None:
    assert seen
    assert len(server.logged(outcome="deadline_exceeded")) == 1


def test_response_format_is_refused_by_the_client(seen: Any) -> None:
    """For every model of the provider `openai`; the answer is base64 without it."""
    assert seen["url"]["class"] == "UnsupportedParamsError"
