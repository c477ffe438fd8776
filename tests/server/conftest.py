"""Servers for tests: one shared where nothing is changed, or one of one's own."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.server.process import ServerProcess


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """Shared by a module's tests."""
    process = ServerProcess()
    yield process
    process.close()


@pytest.fixture
def start() -> Iterator[Callable[..., ServerProcess]]:
    """Starts servers that end with the test."""
    started: list[ServerProcess] = []

    def start(*flags: str, **options: Any) -> ServerProcess:
        started.append(ServerProcess(*flags, **options))
        return started[-1]

    yield start
    for process in started:
        process.close()
