"""Behind nginx with default settings: streams are not buffered, and disconnects abort requests."""

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.server import sse
from tests.server.process import HANG, ServerProcess, small, until

CONFIG = """
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log stderr;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/a; uwsgi_temp_path {folder}/b; scgi_temp_path {folder}/c;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{upstream};
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_read_timeout 30s;
        }}
    }}
}}
"""


@pytest.fixture(scope="module")
def nginx(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("nginx")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    file = Path(folder, "nginx.conf")
    file.write_text(CONFIG.format(folder=folder, port=port, upstream=server.port))
    process = subprocess.Popen(["nginx", "-c", str(file), "-p", str(folder)], stderr=subprocess.PIPE)

    def listens() -> bool:
        assert process.poll() is None, process.stderr and process.stderr.read()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    until(listens)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=HANG) as client:
        yield client
    process.terminate()
    process.wait()
    assert process.stderr
    process.stderr.close()


def test_a_stream_passes_unbuffered(nginx: httpx.Client, server: ServerProcess) -> None:
    """The engine pauses after its first step until the client has the preview."""
    body = small(prompt="hold: a", stream=True, partial_images=1)
    with nginx.stream("POST", "/v1/images", json=body) as response:
        assert response.headers["server"].startswith("nginx")
        events = sse.read(response.iter_lines())
        assert next(events) == sse.Event("", "accepted")
        assert next(event for event in events if event.name).name == "image_generation.partial_image"
        server.release()
        assert [event.name for event in events if event.name] == ["image_generation.completed"]


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_a_disconnect_reaches_the_engine(nginx: httpx.Client, server: ServerProcess, accept: str) -> None:
    aborted = server.state()["aborted"]
    request = nginx.build_request(
        "POST", "/v1/images", json=small(prompt="hold: a"), headers={"Accept": accept}
    )
    with socket.create_connection((nginx.base_url.host, nginx.base_url.port or 80)) as client:
        head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        client.sendall(f"POST /v1/images HTTP/1.1\r\n{head}\r\n".encode() + request.content)
        server.wait(running=1)
    server.wait(running=0, aborted=aborted + 1)


def test_large_answers_and_errors_pass(nginx: httpx.Client) -> None:
    answer = nginx.post("/v1/images", json=small(size="256x256", n=10))
    assert len(answer.json()["data"]) == 10
    assert nginx.post("/v1/images", json=small(n=0)).json()["error"]["code"] == "invalid_value"


def test_the_drain_hook_is_refused_through_nginx(nginx: httpx.Client, server: ServerProcess) -> None:
    assert nginx.post("/drain").status_code == 403
    assert server.http.get("/readyz").status_code == 200
