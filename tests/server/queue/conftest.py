"""Brokers for tests: one shared where the broker is not stopped, or one of one's own."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.server.process import ServerProcess, starting
from tests.server.queue.fleet import Fleet, Pair, ready
from tests.server.queue.nats_server import NatsServer


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """Shared: use names of models, keys and jobs that no other test uses."""
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    yield server
    server.close()


@pytest.fixture
def start_nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., NatsServer]]:
    """Starts servers that end with the test; `config` replaces the default, which has JetStream."""
    started: list[NatsServer] = []

    def start(config: str = "", folder: Path | None = None) -> NatsServer:
        started.append(NatsServer(folder or tmp_path_factory.mktemp("nats"), config))
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """For clients that wait."""
    with ThreadPoolExecutor(32) as threads:
        yield threads


@pytest.fixture
def fleet(request: pytest.FixtureRequest, start: Callable[..., ServerProcess]) -> Fleet:
    """Processes on the shared broker, with a model that no other test uses."""
    server: NatsServer = request.getfixturevalue("nats_server")
    return Fleet(start, server, request.node.name)


@pytest.fixture(scope="session")
def pair(nats_server: NatsServer) -> Iterator[Pair]:
    """Shared: leave no request, and stop no process."""
    with starting() as start:
        fleet = Fleet(start, nats_server, "pair")
        worker = fleet.process("worker", "--max-batch-size", "1", FAKE_MAX_SIZE="1024")
        front = fleet.process("front", FAKE_MAX_SIZE="1024")
        ready(worker, front)
        yield Pair(fleet, worker, front)


@pytest.fixture
def own_fleet(
    request: pytest.FixtureRequest, start: Callable[..., ServerProcess], start_nats: Callable[..., NatsServer]
) -> Fleet:
    """Processes on a broker of their own, which the test may stop."""
    return Fleet(start, start_nats(), request.node.name)
