"""Servers for tests: one shared where nothing is changed, or one of one's own."""

from collections.abc import Callable, Iterator

import pytest

from tests.server.process import ServerProcess, starting


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """Shared by a module's tests."""
    process = ServerProcess()
    yield process
    process.close()


@pytest.fixture
def start() -> Iterator[Callable[..., ServerProcess]]:
    """Starts servers that end with the test."""
    with starting() as start:
        yield start
