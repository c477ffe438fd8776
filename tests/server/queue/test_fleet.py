"""Fronts and workers over one broker: real processes, with the fake engine."""

import contextlib
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from server.queue import names
from tests.server.process import ServerProcess, small, until
from tests.server.queue.fleet import Fleet, ready


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as threads:
        yield threads


def submit(
    pool: ThreadPoolExecutor, front: ServerProcess, headers: dict[str, str] | None = None, **body: Any
) -> Future[httpx.Response]:
    return pool.submit(front.create, headers, **body)


def test_a_front_and_a_worker_answer_requests(fleet: Fleet) -> None:
    worker, front = fleet.worker(), fleet.front()
    ready(worker, front)
    done = front.create(seed=5, n=2)
    assert done.status_code == 200, done.text
    assert [image["seed"] for image in done.json()["data"]] == [5, 6]
    assert worker.http.post("/v1/images", json={}).status_code == 404
    assert worker.state()["finished"] == 1
    failed = front.create(prompt="fail: x")
    assert (failed.status_code, failed.json()["error"]["code"]) == (500, "generation_failed")
    stream = front.create(prompt="a cat", stream=True, partial_images=2, progress=True, num_inference_steps=4)
    events = ("progress", "partial_image", "completed")
    assert [stream.text.count(f"event: image_generation.{name}") for name in events] == [4, 2, 1]
    until(lambda: fleet.messages(names.WORK) == 0)


def test_a_server_of_all_roles_works_alone(fleet: Fleet) -> None:
    server = fleet.process("all")
    ready(server)
    assert server.create(seed=1).status_code == 200
    assert server.state()["finished"] == 1


def test_a_front_is_ready_with_its_first_worker(fleet: Fleet) -> None:
    front = fleet.front()
    refused = front.http.get("/readyz")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_not_ready")
    worker = fleet.worker()
    ready(front)
    worker.set(is_ready=False)
    until(lambda: front.http.get("/readyz").status_code == 503)
    worker.set(is_ready=True)
    ready(front)
    worker.terminate()
    assert worker.exit_code() == 0
    until(lambda: front.http.get("/readyz").status_code == 503)


def test_large_images_cross_in_parts(fleet: Fleet) -> None:
    worker = fleet.process("worker", FAKE_MAX_SIZE="1024")
    front = fleet.process("front", "--png-compress-level", "0", FAKE_MAX_SIZE="1024")
    ready(worker, front)
    done = front.create({"Accept": "image/png"}, prompt="noise: x", size="1024x1024", seed=3)
    assert (done.status_code, len(done.content) > 3 << 20) == (200, True)


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


def test_a_client_that_leaves_aborts_its_request(fleet: Fleet, pool: ThreadPoolExecutor) -> None:
    worker, front = fleet.worker("--max-batch-size", "1"), fleet.front()
    ready(worker, front)
    with stream(front):
        worker.wait(running=1)
    worker.wait(running=0, aborted=1)
    until(lambda: fleet.messages(names.WORK) == 0)
    held = submit(pool, front, prompt="hold: x")
    worker.wait(running=1)
    with stream(front):
        until(lambda: fleet.messages(names.WORK) == 2)
    until(lambda: fleet.messages(names.WORK) == 1)
    worker.release()
    assert held.result().status_code == 200
    assert worker.state()["aborted"] == 1


def stream(front: ServerProcess) -> "contextlib.AbstractContextManager[httpx.Response]":
    """A request that holds, whose client leaves at the end of the block."""
    return httpx.stream("POST", f"{front.url}/v1/images", json=small(prompt="hold: x", stream=True))


def test_a_killed_worker_s_requests_run_elsewhere(fleet: Fleet, pool: ThreadPoolExecutor) -> None:
    first, front = fleet.worker(), fleet.front()
    ready(first, front)
    held = submit(pool, front, prompt="hold: x", seed=9)
    first.wait(running=1)
    second = fleet.worker()
    ready(second)
    first.process.send_signal(signal.SIGKILL)
    second.wait(running=1)
    second.release()
    assert held.result().json()["data"][0]["seed"] == 9
    assert second.metric("ideoserve_queue_redelivered_total") == 1
