"""Sends forty requests to a real server while its worker is killed, stopped and made to raise."""

import base64
import io
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from engine.checkpoint.loader import load_pipeline
from engine.client.tokenizer import Tokenizer
from engine.config.model_config import ModelConfig
from engine.config.part_folders import PartFolders
from engine.messages import FromWorker, ImageDone
from engine.request import EngineRequest
from engine.runner.model_runner import ModelRunner
from engine.scheduling.batch_limits import BatchLimits
from engine.scheduling.scheduler import Scheduler
from engine.worker.core import EngineCore
from tests.chaos_worker import FAILS
from tests.engine.fakes import COST
from tests.server import sse
from tests.server.process import ServerProcess

DEMO = Path(__file__).parents[1] / "models" / "demo"
NUM_REQUESTS = 40
# (answers before the signal, signal): far enough apart for the affected requests to be answered.
DISTURBANCES = ((4, signal.SIGKILL), (13, signal.SIGSTOP), (22, signal.SIGKILL), (31, signal.SIGKILL))

Pixels = NDArray[np.int16]


@dataclass(frozen=True)
class Wanted:
    """One request. `fails_at` is the step at which the worker raises, or None."""

    prompt: str
    preset: str
    size: tuple[int, int]
    seed: int
    images: int
    stream: bool
    fails_at: int | None = None

    @property
    def body(self) -> dict[str, Any]:
        return {
            "prompt": self.prompt,
            "preset": self.preset,
            "size": "{}x{}".format(*self.size),
            "seed": self.seed if self.fails_at is None else FAILS + self.fails_at,
            "n": self.images,
            "stream": self.stream,
        }


@dataclass(frozen=True)
class Answer:
    status: int
    pixels: dict[int, list[Pixels]]


def requests(rng: random.Random) -> list[Wanted]:
    """Twelve different requests, repeated, so that few expected images are computed; every eighth raises."""
    presets = ["V4_TURBO_12", "V4_TURBO_12", "V4_TURBO_12", "V4_DEFAULT_20"]
    kinds = [
        ("a red circle", presets[i % 4], [(64, 64), (96, 64), (96, 96)][i % 3], i, 1 + (i % 5 == 0))
        for i in range(12)
    ]
    chosen = [kinds[i % len(kinds)] for i in range(NUM_REQUESTS)]
    rng.shuffle(chosen)
    return [
        Wanted(*kind, stream=i % 2 == 0, fails_at=rng.randrange(12) if i % 8 == 5 else None)
        for i, kind in enumerate(chosen)
    ]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    flags = ["--model", str(DEMO), "--max-backlog-seconds", "3600", "--log-level", "warning"]
    process = ServerProcess(*flags, module="tests.chaos_server", OMP_NUM_THREADS="1")
    until(lambda: is_ready(process))
    yield process
    process.close()


class Chaos:
    """Sends signals to the worker as responses arrive, and collects the pids of all workers."""

    def __init__(self, server: ServerProcess, rng: random.Random) -> None:
        self.workers = {server.worker_pid()}
        self._server = server
        self._lock = threading.Lock()
        self._answers = 0
        self._pending = [(after + rng.randrange(3), rng.random() * 0.3, what) for after, what in DISTURBANCES]

    @property
    def is_over(self) -> bool:
        return not self._pending

    def answered(self) -> None:
        """Count a response; send the next signal if it is due."""
        with self._lock:
            self._answers += 1
            if not self._pending or self._answers < self._pending[0][0]:
                return
            _, delay, what = self._pending.pop(0)
            time.sleep(delay)
            until(lambda: is_ready(self._server))
            worker = self._server.worker_pid()
            self.workers.add(worker)
            os.kill(worker, what)


def ask(server: ServerProcess, chaos: Chaos, wanted: Wanted) -> Answer:
    response = httpx.post(f"{server.url}/v1/images", json=wanted.body, timeout=280)
    chaos.answered()
    if response.status_code != 200:
        return Answer(response.status_code, {})
    if wanted.stream:
        return streamed(response.text)
    data = response.json()["data"]
    return Answer(200, {index: [decoded(image["b64_json"])] for index, image in enumerate(data)})


def streamed(text: str) -> Answer:
    pixels: dict[int, list[Pixels]] = {}
    for name, data in sse.named(text.splitlines()):
        if name == "error":
            return Answer(500, pixels)
        if name == "image_generation.completed":
            pixels.setdefault(data["image_index"], []).append(decoded(data["b64_json"]))
    return Answer(200, pixels)


def decoded(b64: str) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64))).convert("RGB")).astype(np.int16)


def expected_pixels(kinds: set[Wanted]) -> dict[Wanted, list[Pixels]]:
    """Generate each request alone, in this process."""
    runner = ModelRunner(load_pipeline(PartFolders.of(DEMO), "cpu", torch.float32), "cpu")
    return {wanted: alone(runner, wanted) for wanted in kinds}


def alone(runner: ModelRunner, wanted: Wanted) -> list[Pixels]:
    preset = ModelConfig.load(DEMO).presets[wanted.preset]
    sent: list[FromWorker] = []
    cost = replace(COST, max_batch_size=1)
    core = EngineCore(runner, Scheduler(cost, BatchLimits(cost), 1), sent.append)
    core.add(
        EngineRequest(
            "alone",
            Tokenizer(DEMO / "tokenizer", 2048).encode(wanted.prompt),
            *wanted.size,
            seeds=tuple(range(wanted.seed, wanted.seed + wanted.images)),
            sampling=preset,
        )
    )
    while core.has_work:
        core.step()
    flat = [np.frombuffer(image.rgb, np.uint8) for image in sent if isinstance(image, ImageDone)]
    return [each.reshape(wanted.size[1], wanted.size[0], 3).astype(np.int16) for each in flat]


def test_every_accepted_request_gets_the_right_pixels_once(server: ServerProcess) -> None:
    rng = random.Random(4)
    wanted = requests(rng)
    chaos = Chaos(server, rng)
    before = resident_bytes(server.process.pid)
    with ThreadPoolExecutor(NUM_REQUESTS) as pool:
        answers = list(pool.map(lambda each: ask(server, chaos, each), wanted))
    assert chaos.is_over
    failing = [
        answer.status for each, answer in zip(wanted, answers, strict=True) if each.fails_at is not None
    ]
    assert failing == [500] * (NUM_REQUESTS // 8)
    served = [(each, answer) for each, answer in zip(wanted, answers, strict=True) if each.fails_at is None]
    assert [answer.status for _, answer in served] == [200] * len(served)
    right = expected_pixels({kind(each) for each, _ in served})
    for each, answer in served:
        expected = right[kind(each)]
        assert sorted(answer.pixels) == list(range(each.images))
        for index, pixels in answer.pixels.items():
            (image,) = pixels
            assert np.abs(image - expected[index]).max() <= 1
    until(lambda: is_ready(server))
    chaos.workers.add(server.worker_pid())
    assert len(chaos.workers) == len(DISTURBANCES) + 1
    assert server.metric("ideoserve_worker_restarts_total") == len(DISTURBANCES)
    assert resident_bytes(server.process.pid) < before + (32 << 20)
    server.terminate()
    assert server.exit_code() == 0
    until(lambda: not any(is_running(worker) for worker in chaos.workers))


def test_a_stopped_device_gets_no_work_and_the_last_one_ends_readiness() -> None:
    flags = ["--model", str(DEMO), "--devices", "cpu,cpu", "--log-level", "warning"]
    server = ServerProcess(*flags, module="tests.chaos_server", OMP_NUM_THREADS="1")
    try:
        until(lambda: server.metric('ideoserve_devices{state="ready"}') == 2)
        first, second = sorted(server.worker_pids())
        os.kill(first, signal.SIGSTOP)
        answers = [create(server) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200] * 3
        os.kill(second, signal.SIGSTOP)
        until(lambda: not is_ready(server))
        assert create(server).json()["error"]["code"] == "model_not_ready"
    finally:
        server.close()


def create(server: ServerProcess) -> httpx.Response:
    body = {"prompt": "a red circle", "preset": "V4_TURBO_12", "size": "64x64"}
    return server.http.post("/v1/images", json=body, headers={"X-Request-Timeout": "60"})


def kind(wanted: Wanted) -> Wanted:
    """The request without the fields that do not affect pixels."""
    return Wanted(wanted.prompt, wanted.preset, wanted.size, wanted.seed, wanted.images, stream=False)


def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def is_ready(server: ServerProcess) -> bool:
    return httpx.get(f"{server.url}/readyz").status_code == 200


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
