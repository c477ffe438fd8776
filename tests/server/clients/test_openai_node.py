"""The official `openai` npm client, unchanged."""

import base64
from typing import Any

import pytest

from tests.server.clients.conftest import ALIASES
from tests.server.clients.programs import run_node
from tests.server.edits.pictures import encoded, hole
from tests.server.process import ServerProcess


@pytest.fixture(scope="module")
def seen(server: ServerProcess) -> Any:
    return run_node("use_openai.js", server, base64.b64encode(encoded(hole(128, 128))).decode())


def failed(name: str, status: int | None, code: str | None, param: str | None = None) -> dict[str, Any]:
    """As use_openai.js prints an error; JSON leaves out what is undefined."""
    fields = {"name": name, "status": status, "code": code, "param": param}
    return {key: value for key, value in fields.items() if value is not None}


def test_images(seen: Any) -> None:
    assert seen["seeds"] == [5, 6]
    assert seen["isPng"]
    assert seen["totalTokens"] == 2 + 2 * 64
    assert seen["withResponse"] == {"images": 1, "hasRequestId": True}


def test_events(seen: Any) -> None:
    assert seen["events"] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]


def test_edits(seen: Any) -> None:
    events = ["image_edit.partial_image", "image_edit.completed"]
    assert seen["edits"] == {"file": [5], "list": [5, 6], "mask": [5], "events": events}


def test_the_timeout_does_not_limit_a_stream(seen: Any) -> None:
    assert seen["longStream"] == 2


def test_raw_response_is_an_image_file(seen: Any) -> None:
    assert seen["raw"] == {"seed": "8", "type": "image/png"}


def test_models(seen: Any) -> None:
    assert seen["models"] == ["fake-model", *ALIASES]


ERRORS = {
    "size": failed("BadRequestError", 400, "invalid_value", "size"),
    "model": failed("NotFoundError", 404, "model_not_found", "model"),
    "failure": failed("InternalServerError", 500, "generation_failed"),
    "deadline": failed("InternalServerError", 504, "deadline_exceeded"),
    "stream": failed("APIError", None, "generation_failed"),
    "unreachable": failed("RateLimitError", 429, "deadline_unreachable"),
    "timeout": failed("APIConnectionTimeoutError", None, None),
    "edit": failed("BadRequestError", 400, "invalid_image", "image"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_have_their_classes(seen: Any, case: str) -> None:
    error = {key: value for key, value in seen["errors"][case].items() if value is not None}
    assert error.pop("hasRequestId") == (case != "timeout")
    assert error == ERRORS[case]


def test_errors_that_cost_device_time_are_not_retried(seen: Any, server: ServerProcess) -> None:
    assert seen
    assert len(server.log_lines(outcome="deadline_exceeded")) == 1
