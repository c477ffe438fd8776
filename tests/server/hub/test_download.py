"""A checkpoint from the Hugging Face Hub: the server answers probes while it downloads, then takes over."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.hub.fake_hub import COMMITS, FakeHub
from tests.server.process import HANG, REPOSITORY, until
from tests.server.queue.nats_server import NatsServer


class Server:
    """The program, with the fake hub and an empty cache. Its first lines come after the download."""

    def __init__(self, model: str, hub: FakeHub, cache: Path, *flags: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self._log = cache / "log"
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(cache), "HF_HUB_DOWNLOAD_TIMEOUT": str(HANG)}
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "server", "--model", model, "--port", str(port), *flags],
                cwd=REPOSITORY,
                env=os.environ | environment | {"OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=HANG)

    @property
    def log(self) -> str:
        return self._log.read_text("utf-8")

    def logged(self, message: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]
        return [line for line in lines if line["message"] == message]

    def close(self) -> None:
        self.http.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    """Holds the demo model, without the id that it declares."""
    folder = shutil.copytree(REPOSITORY / "models" / "demo", tmp_path / "repository")
    declared = json.loads((folder / "ideoserve.json").read_text("utf-8"))
    del declared["id"]
    (folder / "ideoserve.json").write_text(json.dumps(declared), "utf-8")
    made = FakeHub(folder, "owner/name")
    yield made
    made.close()


Start = Callable[..., Server]


@pytest.fixture
def start(hub: FakeHub, tmp_path: Path) -> Iterator[Start]:
    started: list[Server] = []

    def start(model: str, *flags: str) -> Server:
        started.append(Server(model, hub, tmp_path, *flags))
        return started[-1]

    yield start
    for server in started:
        server.close()


def test_progress_is_logged(start: Start, hub: FakeHub) -> None:
    server = start("owner/name")
    assert hub.is_holding.wait(HANG)
    until(lambda: bool(server.logged("downloading")))
    progress = server.logged("downloading")[0]
    assert 0 <= progress["bytes"] < progress["total_bytes"] <= 9 << 20


def test_the_application_takes_over_without_refusing_a_connection(start: Start, hub: FakeHub) -> None:
    server = start("hf://owner/name@v1")
    assert hub.is_holding.wait(HANG)
    ended = threading.Event()

    def probe() -> set[int]:
        """Over new connections, as a kubelet does. Raises if one is refused or reset."""
        seen = set()
        while not ended.is_set():
            seen.add(httpx.get(server.http.base_url.join("/healthz"), timeout=HANG).status_code)
        return seen

    with ThreadPoolExecutor() as pool:
        probes = [pool.submit(probe) for _ in range(4)]
        hub.release.set()
        try:
            until(lambda: server.http.get("/v1/models").status_code == 200)
        finally:
            ended.set()
    assert [each.result() for each in probes] == [{200}] * 4
    assert [model["id"] for model in server.http.get("/v1/models").json()["data"]] == ["owner/name"]
    (done,) = server.logged("downloaded")
    assert done["path"].endswith(f"models--owner--name/snapshots/{COMMITS['v1']}")


def test_a_transformer_from_the_hub_in_a_local_checkpoint(start: Start, hub: FakeHub, tmp_path: Path) -> None:
    """The other parts of its repository are not downloaded. Its presets have no guidance."""
    preset = {"num_inference_steps": 2, "guidance_schedule": [[1.0, 2]], "mu": 0.0, "std": 1.5}
    (hub.folder / "ideoserve.json").write_text(json.dumps({"presets": {"TWO": preset}}), "utf-8")
    shutil.rmtree(hub.folder / "vae")
    (hub.folder / "vae").mkdir()
    (hub.folder / "vae" / "config.json").write_text("not read", "utf-8")
    base = shutil.copytree(REPOSITORY / "models" / "demo", tmp_path / "base")
    for part in ("transformer", "unconditional_transformer"):
        shutil.rmtree(base / part)
    server = start(str(base), "--transformer", "owner/name")
    assert hub.is_holding.wait(HANG)
    hub.release.set()
    until(lambda: server.http.get("/readyz").status_code == 200)
    (model,) = server.http.get("/v1/models").json()["data"]
    assert list(model["presets"]) == ["TWO"]
    request = {"prompt": "a red circle", "seed": 1}
    assert server.http.post("/v1/images", json=request).status_code == 200
    refused = server.http.post("/v1/images", json={**request, "guidance_scale": 5})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "guidance_scale")
    assert not any(path.endswith("vae/config.json") for path in hub.served)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_download_at_once(start: Start, hub: FakeHub, number: signal.Signals) -> None:
    server = start("owner/name")
    assert hub.is_holding.wait(HANG)
    server.process.send_signal(number)
    assert server.process.wait(HANG) == 0


@pytest.mark.parametrize("model", ["owner/name@v2", "owner/other"])
def test_a_revision_or_repository_that_does_not_exist(start: Start, model: str) -> None:
    server = start(model)
    assert server.process.wait(HANG) == 2
    (line,) = [line for line in server.log.splitlines() if line.startswith("ideoserve: ")]
    assert line.startswith(f"ideoserve: {model}: ")
    assert "404" in line
    assert "Traceback" not in server.log


def test_a_front_downloads_no_weights(start: Start, hub: FakeHub, tmp_path: Path) -> None:
    broker = NatsServer(tmp_path)
    server = start("owner/name", "--queue", broker.url, "--role", "front")
    until(lambda: bool(server.logged("downloaded")))
    until(lambda: server.http.get("/v1/models").status_code == 200)
    (model,) = server.http.get("/v1/models").json()["data"]
    assert (model["id"], model["fingerprint"]) == ("owner/name", "")
    assert any(path.endswith("tokenizer.json") for path in hub.served)
    assert not any(path.endswith(".safetensors") for path in hub.served)
    broker.close()
