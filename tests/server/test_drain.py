"""The end: readiness first, accepted work finishes, then exit."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx

from tests.server import sse
from tests.server.process import HANG, ServerProcess, small, until

Start = Callable[..., ServerProcess]


def check_draining(server: ServerProcess) -> None:
    for response in (server.create(), server.http.get("/readyz")):
        assert (response.status_code, response.json()["error"]["code"]) == (503, "server_draining")
        assert response.headers["retry-after"] == "1"
        assert response.headers["connection"] == "close"
    assert server.http.get("/healthz").status_code == 200


def test_sigterm_finishes_what_was_accepted(start: Start) -> None:
    server = start()
    with ThreadPoolExecutor() as pool, httpx.Client(base_url=server.url, timeout=HANG) as other:
        waiting = pool.submit(server.create, prompt="hold: a")
        with other.stream("POST", "/v1/images", json=small(prompt="hold: a", stream=True)) as stream:
            server.wait(running=2)
            server.terminate()
            until(lambda: server.http.get("/readyz").status_code == 503)
            check_draining(server)
            server.release()
            assert sse.named(stream.iter_lines())[-1].name == "image_generation.completed"
        assert waiting.result().status_code == 200
    assert server.exit_code() == 0
    assert not server.log_lines(level="error")


def test_sigterm_when_idle(start: Start) -> None:
    server = start()
    server.terminate()
    assert server.exit_code() == 0


def test_second_signal_ends_at_once(start: Start) -> None:
    server = start()
    with server.http.stream("POST", "/v1/images", json=small(prompt="hold: a", stream=True)):
        server.wait(running=1)
        server.terminate()
        until(lambda: httpx.get(f"{server.url}/readyz", timeout=HANG).status_code == 503)
        server.terminate()
        assert server.exit_code() == 0


def test_drain_hook_fails_readiness_and_keeps_the_listener(start: Start) -> None:
    server = start()
    with server.http.stream("POST", "/v1/images", json=small(prompt="hold: a", stream=True)) as stream:
        server.wait(running=1)
        assert server.http.post("/drain").json() == {"status": "draining", "in_flight": 1}
        check_draining(server)
        server.release()
        assert "image_generation.completed" in stream.read().decode()
    check_draining(server)
    server.terminate()
    assert server.exit_code() == 0


def test_drain_hook_is_not_for_strangers(start: Start) -> None:
    server = start()
    for header in ("X-Forwarded-For", "Forwarded", "Via", "X-Real-IP"):
        assert server.http.post("/drain", headers={header: "1.2.3.4"}).status_code == 403
    assert server.http.get("/drain").status_code == 405
    assert server.http.get("/readyz").status_code == 200


def test_death_of_the_engine_ends_the_process(start: Start) -> None:
    server = start()
    response = server.create(prompt="die: a")
    assert (response.status_code, response.json()["error"]["code"]) == (500, "worker_crashed")
    assert server.exit_code() == 1
    assert "the worker cannot be started again" in server.log.splitlines()[-1]
