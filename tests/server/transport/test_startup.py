"""Probes while the checkpoint is downloaded, from a hub that does not answer until it is told to."""

import asyncio
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from server.settings.settings import read_settings
from server.transport.server import listen
from server.transport.startup import answering_probes
from tests.server.process import HANG, REPOSITORY
from tests.server.routes.test_errors import check


class Hub(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked, self.released = threading.Event(), threading.Event()


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self.server.asked.set()
        self.server.released.wait()
        self.send_error(404)

    do_HEAD = do_GET

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.released.set()
        hub.shutdown()


@pytest.fixture
def server(hub: Hub, tmp_path: Path) -> "Iterator[tuple[str, subprocess.Popen[str]]]":
    """A server in the middle of its download, and its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    process = subprocess.Popen(
        [sys.executable, "-m", "server", "--model", "nobody/nothing", "--port", port],
        cwd=REPOSITORY,
        env={"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert hub.asked.wait(HANG)
    yield f"http://127.0.0.1:{port}", process
    process.kill()
    process.communicate()


def test_probes_are_answered(server: tuple[str, subprocess.Popen[str]], hub: Hub) -> None:
    url, process = server
    with httpx.Client(base_url=url, timeout=HANG) as http:
        assert http.get("/healthz").json() == {"status": "ok"}
        assert http.head("/healthz").status_code == 200
        for response in (http.get("/readyz"), http.post("/v1/images", json={"prompt": "a"})):
            check(response, 503, "model_not_ready")
            assert response.headers["connection"] == "close"
    hub.released.set()
    _, errors = process.communicate(timeout=HANG)
    assert process.returncode == 2
    assert errors.splitlines()[-1].startswith("ideoserve: nobody/nothing: ")


def test_a_request_on_its_way_is_answered_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a client that has connected, and sends the rest of its request after the listener has closed."""
    settings = read_settings(["--model", "x", "--port", "0", "--log-level", "error"])
    sockets = listen(settings)
    closed, close = threading.Event(), asyncio.Server.close

    def note(server: asyncio.Server) -> None:
        close(server)
        closed.set()

    monkeypatch.setattr(asyncio.Server, "close", note)
    monkeypatch.setattr("server.observability.logs.configure", lambda level: None)  # of the tests' process
    address = sockets[0].getsockname()
    with socket.create_connection(address, HANG) as client, ThreadPoolExecutor() as pool:
        client.sendall(b"GET /healthz HTTP/1.1\r\n")

        def finish() -> bytes:
            assert closed.wait(HANG)
            client.sendall(b"Host: x\r\n\r\n")
            return client.recv(12)

        with answering_probes(settings, sockets):
            assert httpx.get(f"http://127.0.0.1:{address[1]}/healthz", timeout=HANG).status_code == 200
            answer = pool.submit(finish)
        assert answer.result() == b"HTTP/1.1 200"
    for each in sockets:
        each.close()


def test_sigterm_ends_the_download(server: tuple[str, subprocess.Popen[str]]) -> None:
    url, process = server
    assert httpx.get(f"{url}/healthz", timeout=HANG).status_code == 200
    process.send_signal(signal.SIGTERM)
    assert process.wait(HANG) == 0
