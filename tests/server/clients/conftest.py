"""A server as an operator would start it for clients with fixed model ids and OpenAI's sizes."""

from collections.abc import Iterator

import pytest

from tests.server.process import ServerProcess

ALIASES = ("dall-e-2", "dall-e-3", "gpt-image-1", "gpt-image-2")


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    process = ServerProcess("--model-alias", ",".join(ALIASES), FAKE_MAX_SIZE="2048")
    yield process
    process.close()
