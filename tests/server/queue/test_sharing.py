"""Idempotency keys, limits and priorities over several fronts: real processes, with the fake engine."""

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import nats
import pytest

from server.generation.transcript import ImageFile, Transcript
from server.queue import names
from server.queue.connection.access import Access
from server.queue.connection.broker import Broker
from server.queue.front.answers import Answers
from server.settings.config_error import ConfigError
from tests.server.process import ServerProcess, small, starting, until
from tests.server.queue.fleet import Fleet, ready, submit
from tests.server.queue.nats_server import NatsServer

KEY = {"Authorization": "Bearer secret"}


@pytest.fixture(scope="module")
def fleet(nats_server: NatsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Shared by the tests of this file, each of which leaves no request behind."""
    with starting() as start:
        yield Fleet(start, nats_server, "sharing", "1")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    file.write_text(json.dumps({"keys": [{"name": "web", "key": "secret", "max_concurrency": 3}]}))
    return file


@pytest.fixture(scope="module")
def worker(fleet: Fleet) -> ServerProcess:
    return fleet.worker("--max-batch-size", "4")


@pytest.fixture(scope="module")
def fronts(fleet: Fleet, worker: ServerProcess, keys: Path) -> list[ServerProcess]:
    fronts = [fleet.front("--api-keys-file", str(keys)) for _ in range(2)]
    ready(worker, *fronts)
    return fronts


def stored(broker: NatsServer, bucket: names.Bucket) -> int:
    """The number of values in a bucket, with markers of deleted ones."""

    async def count() -> int:
        client = await nats.connect(broker.url)
        state = (await client.jetstream().stream_info(f"KV_{bucket.name}")).state
        await client.close()
        return state.messages

    return asyncio.run(count())


def send(front: ServerProcess, key: str, **body: object) -> httpx.Response:
    return front.http.post("/v1/images", json=small(**body), headers=KEY | {"Idempotency-Key": key})


def test_a_retry_on_another_front_gets_the_same_answer(
    fronts: list[ServerProcess], worker: ServerProcess, nats_server: NatsServer
) -> None:
    finished = worker.state()["finished"]
    first, second = (send(front, "retry", prompt="noise: x", n=2, size="256x256") for front in fronts)
    assert first.status_code == second.status_code == 200
    assert first.json() == second.json()
    assert worker.state()["finished"] == finished + 1
    reused = send(fronts[1], "retry", prompt="another body")
    assert (reused.status_code, reused.json()["error"]["code"]) == (422, "idempotency_key_reused")
    until(lambda: stored(nats_server, names.CLAIMS) == 0)


def test_fronts_run_one_request_of_a_key_at_a_time(
    fronts: list[ServerProcess], worker: ServerProcess, pool: ThreadPoolExecutor
) -> None:
    finished = worker.state()["finished"]
    waiting = [pool.submit(send, front, "once", prompt="hold: x") for front in fronts for _ in range(3)]
    worker.wait(running=1)
    mismatch = [send(front, "once", prompt="another body").status_code for front in fronts]
    assert mismatch == [422, 422]
    worker.release()
    answers = [each.result() for each in waiting]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    assert worker.state()["finished"] == finished + 1


def test_a_request_of_a_client_that_left_runs_again_elsewhere(
    fronts: list[ServerProcess], worker: ServerProcess, pool: ThreadPoolExecutor
) -> None:
    url, headers = f"{fronts[0].url}/v1/images", KEY | {"Idempotency-Key": "left"}
    body = small(prompt="hold: x", stream=True)
    with httpx.stream("POST", url, json=body, headers=headers):
        worker.wait(running=1)
        second = pool.submit(fronts[1].http.post, "/v1/images", json=body, headers=headers)
    until(lambda: worker.state()["aborted"] > 0)
    worker.wait(running=1)
    worker.release()
    assert second.result().status_code == 200
    assert "image_generation.completed" in second.result().text


def test_a_key_s_limit_holds_over_all_fronts(
    fronts: list[ServerProcess], worker: ServerProcess, pool: ThreadPoolExecutor
) -> None:
    held = [submit(pool, fronts[i % 2], KEY, prompt="hold: x") for i in range(8)]
    until(lambda: sum(each.done() for each in held) == 5)
    refused = [each.result() for each in held if each.done()]
    assert {answer.json()["error"]["code"] for answer in refused} == {"concurrency_limit"}
    assert {answer.status_code for answer in refused} == {429}
    worker.wait(running=3)
    worker.release()
    assert sorted(each.result().status_code for each in held) == [200] * 3 + [429] * 5
    again = [submit(pool, front, KEY) for front in fronts]
    assert {each.result().status_code for each in again} == {200}


def test_admission_counts_the_requests_of_all_fronts(
    worker: ServerProcess, fronts: list[ServerProcess], pool: ThreadPoolExecutor
) -> None:
    held = [submit(pool, fronts[0], KEY, prompt="hold: x", num_inference_steps=100) for _ in range(2)]
    worker.wait(running=2)
    until(lambda: fronts[1].metric("ideoserve_backlog_seconds") > 19)
    late = fronts[1].create(KEY | {"X-Request-Timeout": "15"}, num_inference_steps=1)
    worker.release()
    assert (late.status_code, late.json()["error"]["code"]) == (429, "deadline_unreachable")
    assert {each.result().status_code for each in held} == {200}


def test_interactive_requests_are_pulled_first_and_batch_gets_its_share(
    nats_server: NatsServer, start: Callable[..., ServerProcess], pool: ThreadPoolExecutor
) -> None:
    fleet = Fleet(start, nats_server, "priorities")
    worker, front = fleet.worker("--max-batch-size", "1"), fleet.front("--max-backlog-seconds", "9999")
    ready(worker, front)
    held = submit(pool, front, prompt="hold: x")
    worker.wait(running=1)
    batch = [submit(pool, front, {"X-Priority": "batch"}) for _ in range(3)]
    until(lambda: fleet.messages(names.WORK) == 4)
    interactive = [submit(pool, front) for _ in range(25)]
    until(lambda: fleet.messages(names.WORK) == 29)
    worker.release()
    assert {each.result().status_code for each in (held, *batch, *interactive)} == {200}
    order = [request["priority"] for request in worker.state()["requests"]]
    positions = [index for index, priority in enumerate(order) if priority == "batch"]
    assert 8 <= positions[0] <= 12
    assert 18 <= positions[1] <= 24
    assert positions[2] == 28


def test_a_promotion_reaches_requests_that_run_and_that_wait(
    nats_server: NatsServer, start: Callable[..., ServerProcess], pool: ThreadPoolExecutor
) -> None:
    fleet = Fleet(start, nats_server, "promotions")
    worker, front = fleet.worker("--max-batch-size", "1"), fleet.front()
    ready(worker, front)

    def ask(key: str, priority: str) -> httpx.Response:
        return front.create({"Idempotency-Key": key, "X-Priority": priority}, prompt="hold: x")

    runs = pool.submit(ask, "runs", "batch")
    worker.wait(running=1)
    waits = pool.submit(ask, "waits", "batch")
    until(lambda: fleet.messages(names.WORK) == 2)
    joined = [pool.submit(ask, key, "interactive") for key in ("runs", "waits")]
    until(lambda: worker.state()["running_requests"][0]["priority"] == "interactive")
    until(lambda: fleet.messages(names.WORK, "interactive") == 2)  # the front does not know that one runs
    worker.release()
    worker.wait(running=1, finished=1)
    assert worker.state()["running_requests"][0]["priority"] == "interactive"
    worker.release()
    assert {each.result().status_code for each in (runs, waits, *joined)} == {200}
    until(lambda: fleet.messages(names.WORK) == 0)


def test_kept_responses_are_bounded_and_the_oldest_go_first(start_nats: Callable[..., NatsServer]) -> None:
    access, max_bytes = Access((start_nats().url,)), 300_000

    async def keep() -> tuple[list[bool], int]:
        broker = Broker(access)
        await broker.connect()
        answers = Answers(broker, 600, max_bytes)
        await answers.start()
        await answers.start()  # as a second server does
        for number in range(4):
            await answers.put(f"key{number}", b"digest", answered(100_000))
        await answers.put("large", b"digest", answered(max_bytes + 1))
        kept = [await answers.get(key) for key in ("key0", "key1", "key2", "key3", "large")]
        stored = (await broker.jetstream.stream_info("KV_answers")).state.bytes
        await broker.close()
        return [each is not None for each in kept], stored

    kept, stored = asyncio.run(keep())
    assert kept == [False, False, True, True, False]
    assert stored <= max_bytes


def answered(size: int, request_id: str = "img-1") -> Transcript:
    """With one image of so many bytes."""
    return Transcript(request_id, (1,), events=[ImageFile(0, 1, bytes(size))], is_prepared=True, is_done=True)


def test_more_kept_responses_than_the_broker_can_store_are_refused_at_start(
    start_nats: Callable[..., NatsServer],
) -> None:
    access = Access((start_nats().url,))

    async def keep() -> None:
        broker = Broker(access)
        await broker.connect()
        try:
            await Answers(broker, 600, 1 << 40).start()
        finally:
            await broker.close()

    with pytest.raises(ConfigError, match=r"^--idempotency-bytes: 1099511627776: insufficient storage"):
        asyncio.run(keep())


def test_the_first_answer_of_a_key_is_kept(nats_server: NatsServer) -> None:
    async def keep() -> list[int]:
        broker = Broker(Access((nats_server.url,)))
        await broker.connect()
        answers = Answers(broker, 600, 256 << 20)  # the default, as of the other servers
        await answers.start()
        for size in (1000, 2000):
            await answers.put("first", b"digest", answered(size, f"img-{size}"))
        kept = await answers.get("first")
        await broker.close()
        assert kept
        return [len(image.data) for image in kept[1].images]

    assert asyncio.run(keep()) == [1000]
