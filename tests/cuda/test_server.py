"""A real server with the demo model on a GPU."""

import base64
import io
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.server.process import ServerProcess, until

PROMPT = "a red circle on a white background"


def serve(*flags: str) -> ServerProcess:
    server = ServerProcess("--model", "models/demo", *flags, module="server")
    until(lambda: server.http.get("/readyz").status_code == 200)
    return server


@pytest.fixture(params=[(), ("--cuda-graphs",)], ids=str)
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    started = serve(*request.param)
    yield started
    started.close()


def picture(server: ServerProcess, **body: Any) -> NDArray[np.int16]:
    asked = {"prompt": PROMPT, "seed": 7} | body
    answer = server.http.post("/v1/images", json=asked)
    assert answer.status_code == 200, answer.text
    with Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"]))) as image:
        return np.asarray(image.convert("RGB"), np.int16)


@pytest.fixture(scope="module")
def expected() -> NDArray[np.int16]:
    on_cpu = serve("--devices", "cpu", "--dtype", "float32")
    image = picture(on_cpu)
    on_cpu.close()
    return image


def test_images_match_the_cpu_alone_and_under_load(
    server: ServerProcess, expected: NDArray[np.int16]
) -> None:
    assert np.abs(picture(server) - expected).mean() < 2
    with ThreadPoolExecutor(12) as pool:
        sizes = ["96x96", "128x128", "128x96", "128x128"] * 3
        futures = [pool.submit(picture, server, size=size, seed=s) for s, size in enumerate(sizes)]
        assert np.abs(picture(server) - expected).mean() < 2
        assert [future.result().shape[0] for future in futures] == [int(size.split("x")[1]) for size in sizes]
    assert server.metric("ideoserve_device_memory_bytes") > 1e6


def test_a_killed_worker_is_restarted_and_its_request_completes(expected: NDArray[np.int16]) -> None:
    server = serve()
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(picture, server, preset="V4_QUALITY_48", n=8)
        until(lambda: server.metric("ideoserve_requests_running") > 0)
        os.kill(server.worker_pid(), signal.SIGKILL)
        assert pending.result().shape == expected.shape
    assert server.metric("ideoserve_worker_restarts_total") == 1
    assert np.abs(picture(server) - expected).mean() < 2
    server.close()
