"""LangChain's `OpenAIDALLEImageGenerationTool`, unchanged."""

from typing import Any

import pytest

from tests.server.clients.programs import run_python
from tests.server.process import ServerProcess


@pytest.fixture(scope="module")
def seen(server: ServerProcess) -> Any:
    return run_python("use_langchain.py", server)


def test_the_tool_fails_without_urls(seen: Any, server: ServerProcess) -> None:
    """The tool's model and size are served. It then joins the URLs of the answer, which has base64 data."""
    assert seen["default"].startswith("TypeError: sequence item 0: expected str instance, NoneType found")
    assert [1024, 1024] in [[each["width"], each["height"]] for each in server.state()["requests"]]


ERRORS = {
    "model": "NotFoundError: Error code: 404",
    "size": "BadRequestError: Error code: 400",
    "deadline": "InternalServerError: Error code: 504",
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_have_their_classes(seen: Any, case: str) -> None:
    assert seen[case].startswith(ERRORS[case])


def test_errors_that_cost_device_time_are_not_retried(seen: Any, server: ServerProcess) -> None:
    assert seen
    assert len(server.logged(outcome="deadline_exceeded")) == 1
