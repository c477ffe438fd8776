"""A front that is stopped while it runs the request of an Idempotency-Key, which another front takes over."""

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import pytest

from server.queue import names
from tests.server.process import ServerProcess, small, starting, until
from tests.server.queue.fleet import Fleet, ready, submit
from tests.server.queue.nats_server import NatsServer
from tests.server.queue.test_sharing import stored


@dataclass(frozen=True)
class Servers:
    """Leave no request behind."""

    worker: ServerProcess
    first: ServerProcess
    second: ServerProcess

    def stop_first(self) -> None:
        """Until it is gone for the worker, which drops its request."""
        self.first.process.send_signal(signal.SIGSTOP)
        self.worker.wait(running=0)

    def go_on(self) -> None:
        """Returns once the first front serves requests again."""
        self.first.process.send_signal(signal.SIGCONT)
        assert self.first.create().status_code == 200

    def counts(self) -> tuple[int, int]:
        """Requests that the worker has finished and aborted."""
        state = self.worker.state()
        return state["finished"], state["aborted"]


@pytest.fixture(scope="module")
def processes(nats_server: NatsServer) -> Iterator[Servers]:
    with starting() as start:
        fleet = Fleet(start, nats_server, "takeover")
        servers = Servers(fleet.worker(), fleet.front(), fleet.front())
        ready(servers.worker, servers.first, servers.second)
        yield servers


@pytest.fixture
def servers(processes: Servers) -> Iterator[Servers]:
    yield processes
    processes.first.process.send_signal(signal.SIGCONT)


@pytest.fixture
def send(
    request: pytest.FixtureRequest, pool: ThreadPoolExecutor
) -> Callable[[ServerProcess], "Future[httpx.Response]"]:
    """Requests with one key that hold, with random seeds."""
    return lambda front: submit(pool, front, {"Idempotency-Key": request.node.name}, prompt="hold: x")


Send = Callable[[ServerProcess], "Future[httpx.Response]"]


def taken_over(servers: Servers, send: Send) -> tuple["Future[httpx.Response]", "Future[httpx.Response]"]:
    """The responses to one request, which the worker runs for the second front: the first one is stopped."""
    held = send(servers.first)
    servers.worker.wait(running=1)
    servers.stop_first()
    other = send(servers.second)
    servers.worker.wait(running=1)
    return held, other


def test_it_answers_as_the_other_did(servers: Servers, send: Send, nats_server: NatsServer) -> None:
    worker, (finished, _) = servers.worker, servers.counts()
    held, other = taken_over(servers, send)
    worker.release()
    answer = other.result()
    assert answer.status_code == 200
    servers.first.process.send_signal(signal.SIGCONT)
    assert held.result().json() == answer.json()
    assert servers.counts()[0] == finished + 1
    assert send(servers.first).result().json() == answer.json()
    until(lambda: stored(nats_server, names.CLAIMS) == 0)


def test_it_waits_for_the_other(servers: Servers, send: Send) -> None:
    worker, (finished, _) = servers.worker, servers.counts()
    held, other = taken_over(servers, send)
    servers.go_on()
    worker.release()
    assert held.result().json() == other.result().json()
    assert servers.counts()[0] == finished + 2  # with that of `go_on`


def test_its_own_result_is_not_an_answer_any_more(servers: Servers, send: Send) -> None:
    worker, (finished, _) = servers.worker, servers.counts()
    held = send(servers.first)
    worker.wait(running=1)
    servers.first.process.send_signal(signal.SIGSTOP)
    worker.release()
    worker.wait(running=0, finished=finished + 1)
    other = send(servers.second)
    worker.wait(running=1)
    worker.release()
    answer = other.result()
    servers.go_on()
    assert held.result().json() == answer.json()


def test_it_runs_the_request_again_if_the_other_client_left(
    servers: Servers, pool: ThreadPoolExecutor, request: pytest.FixtureRequest
) -> None:
    worker, (finished, aborted) = servers.worker, servers.counts()
    headers, body = {"Idempotency-Key": request.node.name}, {"prompt": "hold: x", "stream": True}
    held = submit(pool, servers.first, headers, **body)
    worker.wait(running=1)
    servers.stop_first()
    url = f"{servers.second.url}/v1/images"
    with httpx.stream("POST", url, json=small(**body), headers=headers):
        worker.wait(running=1)
        servers.go_on()
    worker.wait(running=1, aborted=aborted + 2)
    worker.release()
    assert "image_generation.completed" in held.result().text
    assert servers.counts() == (finished + 2, aborted + 2)
