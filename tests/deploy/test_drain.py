"""Tests of the drain for a balancer without retries: readiness fails first, then requests are rejected."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import httpx

from tests.server.process import ServerProcess, until


@contextmanager
def _draining(delay_seconds: float) -> Iterator[tuple[ServerProcess, Future[httpx.Response]]]:
    """A server with a request in flight that got SIGTERM and whose readiness fails."""
    server = ServerProcess("--drain-delay-seconds", str(delay_seconds))
    with ThreadPoolExecutor() as pool:
        try:
            held = pool.submit(server.create, prompt="hold: a")
            server.wait(running=1)
            server.terminate()
            until(lambda: server.http.get("/readyz").status_code == 503)
            yield server, held
        finally:
            server.close()


def test_requests_during_the_drain_delay_are_served_and_their_connections_closed() -> None:
    """A kept-alive connection would hold its client here until requests are rejected."""
    with _draining(delay_seconds=300) as (server, held):
        answer = server.create()
        assert answer.status_code == 200
        assert answer.headers["connection"] == "close"
        server.release()
        assert held.result().status_code == 200


def test_after_the_drain_delay_new_requests_are_rejected_and_accepted_ones_finish() -> None:
    with _draining(delay_seconds=0.5) as (server, held):
        until(lambda: server.create().status_code == 503)
        assert server.create().json()["error"]["code"] == "server_draining"
        server.release()
        assert held.result().status_code == 200
        assert server.exit_code() == 0
