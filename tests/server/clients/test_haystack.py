"""Haystack's `OpenAIImageGenerator`, unchanged."""

from typing import Any

import pytest

from tests.server.clients.programs import run_python
from tests.server.process import ServerProcess


@pytest.fixture(scope="module")
def seen(server: ServerProcess) -> Any:
    return run_python("use_haystack.py", server)


@pytest.mark.parametrize(
    ("call", "size"),
    [
        ("default", [1024, 1024]),  # its model is gpt-image-2, an alias here
        ("async", [1024, 1024]),
        ("pipeline", [128, 64]),
        ("url", [1024, 1024]),  # it ignores `response_format`
    ],
)
def test_images(seen: Any, call: str, size: list[int]) -> None:
    assert seen[call] == {"images": 1, "is_png": True, "size": size}


def test_errors_have_their_classes(seen: Any) -> None:
    assert seen["size"] == {"class": "BadRequestError", "code": "invalid_value", "param": "size"}
    assert seen["deadline"] == {"class": "InternalServerError", "code": "deadline_exceeded", "param": None}


def test_errors_that_cost_device_time_are_not_retried(seen: Any, server: ServerProcess) -> None:
    assert seen
    assert len(server.logged(outcome="deadline_exceeded")) == 1
