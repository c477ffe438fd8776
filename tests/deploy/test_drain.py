"""The drain as a balancer that repeats nothing needs it: readiness fails first, then the door shuts."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import httpx

from tests.server.process import ServerProcess, until


@contextmanager
def _leaving(delay_seconds: float) -> Iterator[tuple[ServerProcess, Future[httpx.Response]]]:
    """A server that was told to end while it had a request, and says that it is not ready any more."""
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


def test_until_the_delay_is_over_who_comes_is_served_and_told_to_reconnect() -> None:
    """A kept connection would hold its client here until the door is shut."""
    with _leaving(delay_seconds=300) as (server, held):
        answer = server.create()
        assert answer.status_code == 200
        assert answer.headers["connection"] == "close"
        server.release()
        assert held.result().status_code == 200


def test_then_nothing_new_is_taken_and_what_came_finishes() -> None:
    with _leaving(delay_seconds=0.5) as (server, held):
        until(lambda: server.create().status_code == 503)
        assert server.create().json()["error"]["code"] == "server_draining"
        server.release()
        assert held.result().status_code == 200
        assert server.exit_code() == 0
