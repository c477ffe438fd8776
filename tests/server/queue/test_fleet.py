"""Fronts and workers over one broker: real processes, with the fake engine."""

import base64
import io
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pytest
from PIL import Image

from server.generation import metadata
from server.queue import names
from tests.server.fake_engine import PRECISION
from tests.server.process import ServerProcess, until
from tests.server.queue.fleet import Fleet, Pair, ready, stream, submit
from tests.server.store.test_folder import old


def precision(front: ServerProcess) -> object:
    (model,) = front.http.get("/v1/models").json()["data"]
    return model["precision"]


def test_a_front_and_a_worker_answer_requests(pair: Pair) -> None:
    worker, front = pair.worker, pair.front
    finished = worker.state()["finished"]
    assert precision(front) == asdict(PRECISION)
    done = front.create(seed=5, n=2)
    assert done.status_code == 200, done.text
    assert [image["seed"] for image in done.json()["data"]] == [5, 6]
    images = [Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))) for image in done.json()["data"]]
    assert [(metadata.read(image) or {})["precision"] for image in images] == [asdict(PRECISION)] * 2
    assert worker.http.post("/v1/images", json={}).status_code == 404
    assert worker.state()["finished"] == finished + 1
    failed = front.create(prompt="fail: x")
    assert (failed.status_code, failed.json()["error"]["code"]) == (500, "generation_failed")
    stream = front.create(
        prompt="slow: x", stream=True, partial_images=2, progress=True, num_inference_steps=4
    )
    events = ("partial_image", "completed")
    assert [stream.text.count(f"event: image_generation.{name}") for name in events] == [2, 1]
    assert "event: image_generation.progress" in stream.text  # some steps follow each other too quickly
    until(lambda: pair.fleet.messages(names.WORK) == 0)


def test_a_server_of_all_roles_works_alone(fleet: Fleet) -> None:
    server = fleet.process("all")
    ready(server)
    assert server.create(seed=1).status_code == 200
    assert server.state()["finished"] == 1


def test_a_front_is_ready_with_its_first_worker(fleet: Fleet) -> None:
    front = fleet.front()
    refused = front.http.get("/readyz")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_not_ready")
    assert precision(front) is None
    worker = fleet.worker()
    ready(front)
    worker.set(is_ready=False)
    until(lambda: front.http.get("/readyz").status_code == 503)
    worker.set(is_ready=True)
    ready(front)
    worker.terminate()
    assert worker.exit_code() == 0
    until(lambda: front.http.get("/readyz").status_code == 503)


def test_large_images_cross_in_parts(pair: Pair) -> None:
    done = pair.front.create({"Accept": "image/png"}, prompt="noise: x", size="1024x1024", seed=3)
    assert (done.status_code, len(done.content) > 3 << 20) == (200, True)


def test_fronts_serve_each_other_s_urls_without_a_store(
    pair: Pair, start: Callable[..., ServerProcess]
) -> None:
    fronts = pair.front, Fleet(start, pair.fleet.broker, pair.fleet.model).front()
    done = fronts[0].create(response_format="url", n=2, seed=5)
    assert done.status_code == 200, done.text
    for image, expected in zip(
        done.json()["data"], fronts[0].create(n=2, seed=5).json()["data"], strict=True
    ):
        path = image["url"].removeprefix(fronts[0].url)
        for front in fronts:
            file = front.http.get(path)
            assert file.content == base64.b64decode(expected["b64_json"])
            assert file.headers["content-type"] == "image/png"
            assert front.http.get(path + "0").json()["error"]["code"] == "invalid_signature"
    assert "URLs of images end with this process" not in fronts[0].log


@pytest.mark.parametrize("seconds", [7200, -7200])
def test_the_clock_of_a_front_s_host_does_not_matter_for_its_store(
    pair: Pair, start: Callable[..., ServerProcess], tmp_path: Path, seconds: int
) -> None:
    """A front whose clock is wrong by two hours, of images that live for one."""
    expired, kept = (old(tmp_path, age, str(age)) for age in (3600, -1800))
    others = [(".part-written", 0.0), (".part-left", 600.0)]
    for name, age in others:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    front = Fleet(start, pair.fleet.broker, pair.fleet.model).process(
        "front", "--store", f"file://{tmp_path}", FAKE_CLOCK_SECONDS=str(seconds)
    )
    ready(front)
    url = front.create(response_format="url").json()["data"][0]["url"]
    until(lambda: not expired.exists() and not (tmp_path / ".part-left").exists())
    image = front.http.get(url)
    assert image.status_code == 200
    assert re.fullmatch(r"private, max-age=3(600|5\d\d), immutable", image.headers["cache-control"])
    assert (kept.exists(), (tmp_path / ".part-written").exists()) == (True, True)


def test_a_request_is_pulled_by_an_idle_worker(fleet: Fleet, pool: ThreadPoolExecutor) -> None:
    workers, front = [fleet.worker("--max-batch-size", "1") for _ in range(2)], fleet.front()
    ready(*workers, front)
    held = [submit(pool, front, prompt="hold: x") for _ in range(4)]
    for worker in workers:
        worker.wait(running=1)
    until(lambda: fleet.messages(names.WORK) == 4)
    assert [worker.state()["running"] for worker in workers] == [1, 1]
    while not all(each.done() for each in held):
        for worker in workers:
            worker.release()
    assert {each.result().status_code for each in held} == {200}


def test_a_client_that_leaves_aborts_its_request(pair: Pair, pool: ThreadPoolExecutor) -> None:
    fleet, worker, front = pair.fleet, pair.worker, pair.front
    aborted = worker.state()["aborted"]
    with stream(front):
        worker.wait(running=1)
    worker.wait(running=0, aborted=aborted + 1)
    until(lambda: fleet.messages(names.WORK) == 0)
    held = submit(pool, front, prompt="hold: x")
    worker.wait(running=1)
    with stream(front):
        until(lambda: fleet.messages(names.WORK) == 2)
    until(lambda: fleet.messages(names.WORK) == 1)
    worker.release()
    assert held.result().status_code == 200
    assert worker.state()["aborted"] == aborted + 1
