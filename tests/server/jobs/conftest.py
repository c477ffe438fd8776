"""Servers that share a queue. Each module has its own broker, since all servers run each other's jobs."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.server.jobs.job_client import JobClient
from tests.server.process import ServerProcess
from tests.server.queue.nats_server import NatsServer

MODULE = "tests.server.jobs.job_server"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def jobs(broker: NatsServer) -> Iterator[JobClient]:
    """A server shared by a module's tests."""
    process = ServerProcess("--queue", broker.url, module=MODULE)
    yield JobClient(process)
    process.close()


@pytest.fixture
def own_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """For one test."""
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    yield server
    server.close()


@pytest.fixture
def join(start: Callable[..., ServerProcess], own_broker: NatsServer) -> Callable[..., JobClient]:
    """Starts servers with a queue that only this test uses."""

    def join(*flags: str, **options: Any) -> JobClient:
        return JobClient(start("--queue", own_broker.url, *flags, module=MODULE, **options))

    return join
