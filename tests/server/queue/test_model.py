"""Fronts and workers with the demo model."""

import base64
import io
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from tests.server.process import ServerProcess, small, until
from tests.server.queue.fleet import ready
from tests.server.queue.nats_server import NatsServer

Start = Callable[..., ServerProcess]
MODEL = ("--model", "models/demo")
STAR = small(prompt="a blue star on a yellow background", size="64x64", n=2, seed=7, num_inference_steps=4)


def pixels(server: ServerProcess) -> np.ndarray:
    """Of both images of a request."""
    response = server.http.post("/v1/images", json=STAR)
    assert response.status_code == 200, response.text
    files = [base64.b64decode(image["b64_json"]) for image in response.json()["data"]]
    return np.array([np.asarray(Image.open(io.BytesIO(file))) for file in files], dtype=int)


def test_a_fleet_gives_the_images_of_a_server_alone_without_torch_in_the_front(
    start_nats: Callable[..., NatsServer], start: Start, pool: ThreadPoolExecutor
) -> None:
    queue = ("--queue", start_nats().url)
    worker = start(*MODEL, *queue, "--role", "worker", module="server", OMP_NUM_THREADS="1")
    front = start(*MODEL, *queue, "--role", "front", module="server")
    ready(worker, front)
    first = pixels(front)
    assert np.abs(first[0] - first[1]).max() > 50
    libraries = Path(f"/proc/{front.process.pid}/maps").read_text()
    assert "libtorch" not in libraries
    assert list(front.worker_pids()) == []
    killed = worker.worker_pid()
    again = pool.submit(pixels, front)
    subprocess.run(["kill", "-9", str(killed)], check=True)
    assert np.abs(again.result() - first).max() <= 1  # a rerun may form other batches
    worker.terminate()
    assert worker.exit_code() == 0


def test_one_server_has_a_queue_without_set_up(start: Start, tmp_path: Path) -> None:
    flags = ("--queue", "embedded", "--queue-dir", str(tmp_path / "queue"))
    server = start(*MODEL, *flags, module="server", OMP_NUM_THREADS="1")
    ready(server)
    assert len(pixels(server)) == 2
    server.terminate()
    assert server.exit_code() == 0
    until(lambda: not _is_in_use(tmp_path / "queue"))


def _is_in_use(folder: Path) -> bool:
    """Whether a process was started with a file of the folder."""
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return str(folder) in listed.stdout
