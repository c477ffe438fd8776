"""Graceful shutdown: readiness fails, accepted requests finish, the process exits."""

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx

from tests.server import sse
from tests.server.process import HANG, ServerProcess, small, until
from tests.server.routes.test_errors import check

HEAD = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
Start = Callable[..., ServerProcess]


def check_draining(server: ServerProcess) -> None:
    for response in (server.create(), server.http.get("/readyz")):
        assert (response.status_code, response.json()["error"]["code"]) == (503, "server_draining")
        assert response.headers["retry-after"] == "1"
        assert response.headers["connection"] == "close"
    assert server.http.get("/healthz").status_code == 200


def test_sigterm_finishes_accepted_requests(start: Start) -> None:
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


def terminate_twice(server: ServerProcess) -> None:
    server.terminate()
    until(lambda: httpx.get(f"{server.url}/readyz", timeout=HANG).status_code == 503)
    server.terminate()


def test_second_signal_answers_running_requests_with_an_error(start: Start) -> None:
    server = start("--max-backlog-seconds", "1000")
    with ThreadPoolExecutor() as pool:
        body = {"prompt": "hold: a"}
        answers = [
            pool.submit(server.create, {"Accept": accept, "X-Request-Id": accept[-4:]}, **body)
            for accept in ("application/json", "image/png", "text/event-stream")
        ]
        server.wait(running=3)
        terminate_twice(server)
        json, image, stream = (answer.result() for answer in answers)
    for answer in (json, image):
        check(answer, 503, "server_draining")
        assert answer.headers["retry-after"] == "1"
        assert answer.headers["connection"] == "close"
    (error,) = sse.named(stream.text.split("\n"))
    assert (error.name, error.data["error"]["code"]) == ("error", "server_draining")
    assert server.exit_code() == 0
    lines = server.logged(message="request", path="/v1/images", outcome="server_draining")
    assert sorted(line["status"] for line in lines) == [200, 503, 503]
    assert not server.log_lines(level="error")


def test_second_signal_answers_requests_that_have_not_begun(start: Start) -> None:
    """A body that has not arrived completely."""
    server = start("--body-timeout-seconds", "600")
    head = (
        b"POST /v1/images HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=HANG) as client:
        client.sendall(head)
        until(lambda: server.http.post("/drain").json()["in_flight"] == 1)
        terminate_twice(server)
        received = b"".join(iter(lambda: client.recv(65536), b""))
    assert received.startswith(b"HTTP/1.1 503 ")
    assert b'"code":"server_draining"' in received
    assert server.exit_code() == 0
    assert server.log_lines(message="request", status=503, outcome="server_draining")


def test_requests_that_outlast_the_drain_are_answered_with_an_error(start: Start) -> None:
    """The drain does not wait for caption checks, which are not counted as in flight."""
    server = start("--body-timeout-seconds", "600", "--write-timeout-seconds", "1")
    head = HEAD % b"/v1/captions/validate"
    with socket.create_connection(("127.0.0.1", server.port), timeout=HANG) as client:
        client.sendall(head)
        assert server.http.get("/healthz").status_code == 200
        server.http.close()
        server.terminate()
        received = b"".join(iter(lambda: client.recv(65536), b""))
    assert received.startswith(b"HTTP/1.1 503 ")
    assert b'"code":"server_draining"' in received
    assert server.exit_code() == 0
    assert server.log_lines(message="request", status=503, outcome="server_draining")


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


def test_drain_hook_refuses_remote_callers(start: Start) -> None:
    server = start()
    for header in ("X-Forwarded-For", "Forwarded", "Via", "X-Real-IP", "Origin"):
        assert server.http.post("/drain", headers={header: "1.2.3.4"}).status_code == 403
    assert server.http.get("/drain").status_code == 405
    assert server.http.get("/readyz").status_code == 200


def test_death_of_the_engine_ends_the_process(start: Start) -> None:
    server = start()
    response = server.create(prompt="die: a")
    assert (response.status_code, response.json()["error"]["code"]) == (500, "worker_crashed")
    assert server.exit_code() == 1
    assert "the worker cannot be started again" in server.log.splitlines()[-1]


def test_death_of_the_engine_answers_all_running_requests(start: Start) -> None:
    server = start()
    with ThreadPoolExecutor() as pool:
        stream = pool.submit(server.create, prompt="hold: a", stream=True)
        server.wait(running=1)
        server.create(prompt="die: a")
        (error,) = sse.named(stream.result().text.split("\n"))
    assert (error.name, error.data["error"]["code"]) == ("error", "worker_crashed")
    assert server.exit_code() == 1
    assert server.log_lines(message="request", mode="events", outcome="worker_crashed")
