"""Lost data, cut networks and messages that no server of this version sends: real processes, fake engine."""

import asyncio
import hashlib
import shutil
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import msgspec
import nats
import pytest
from nats.aio.client import Client

from engine.request import EngineRequest, SamplingParams
from server.queue import names
from server.queue.front.claims import Claim
from server.queue.wire import VERSION, Work, encode
from tests.server.process import ServerProcess, small, until
from tests.server.queue.fleet import Fleet, Pair, ready, submit
from tests.server.queue.proxy import Proxy


def on_broker(fleet: Fleet, act: Callable[[Client], Awaitable[None]]) -> None:
    async def run() -> None:
        client = await nats.connect(fleet.broker.url)
        await act(client)
        await client.flush()
        await client.close()

    asyncio.run(run())


def reply_of_running(fleet: Fleet) -> str:
    found: list[str] = []

    async def look(client: Client) -> None:
        state = (await client.jetstream().stream_info("RESULTS", subjects_filter=">")).state
        found.extend(subject.removesuffix(".run") for subject in state.subjects or {})

    until(lambda: on_broker(fleet, look) or bool(found))
    return found[0]


def test_a_broker_that_lost_its_data_is_set_up_again(own_fleet: Fleet, pool: ThreadPoolExecutor) -> None:
    fleet = own_fleet
    worker, front = fleet.worker("--max-batch-size", "1"), fleet.front()
    ready(worker, front)
    held = [submit(pool, front, prompt="hold: x", seed=seed) for seed in (1, 2)]
    worker.wait(running=1)
    until(lambda: fleet.messages(names.WORK) == 2)
    fleet.broker.kill()
    shutil.rmtree(fleet.broker.folder / "jetstream")
    fleet.broker.start()
    until(lambda: front.metric("ideoserve_queue_up") == 1)
    answered = pool.submit(front.create, {"Idempotency-Key": "lost"})
    while not all(each.done() for each in (*held, answered)):
        worker.release()
    assert {each.result().json()["data"][0]["seed"] for each in held} == {1, 2}
    assert answered.result().status_code == 200
    until(lambda: fleet.messages(names.WORK) == fleet.messages(names.RESULTS) == 0)


def test_deleted_streams_and_consumers_are_created_again(own_fleet: Fleet, pool: ThreadPoolExecutor) -> None:
    fleet = own_fleet
    worker, front = fleet.worker("--max-batch-size", "1"), fleet.front()
    ready(worker, front)

    async def delete_consumer(client: Client) -> None:
        consumer = names.consumer(fleet.model, "interactive")
        await client.jetstream().delete_consumer(names.WORK.name, consumer)

    async def delete_streams(client: Client) -> None:
        for stream in (names.WORK, names.RESULTS):
            await client.jetstream().delete_stream(stream.name)

    async def replace_streams(client: Client) -> None:
        await delete_streams(client)
        for stream in (names.WORK, names.RESULTS):
            await stream.declare(client.jetstream(), 1)

    async def delete_buckets(client: Client) -> None:
        for bucket in (names.CLAIMS.name, "answers"):
            await client.jetstream().delete_key_value(bucket)

    for delete in (delete_consumer, delete_streams):
        on_broker(fleet, delete)
        assert front.create().status_code == 200
    held = [submit(pool, front, prompt="hold: x") for _ in range(2)]
    worker.wait(running=1)
    until(lambda: fleet.messages(names.WORK) == 2)
    on_broker(fleet, replace_streams)
    while not all(each.done() for each in held):
        worker.release()
    assert [each.result().status_code for each in held] == [200, 200]
    on_broker(fleet, delete_buckets)
    refused = front.create({"Idempotency-Key": "deleted"})
    assert refused.json()["error"]["code"] == "queue_unavailable"
    until(lambda: front.create({"Idempotency-Key": "deleted"}).status_code == 200)


def test_a_request_that_the_queue_lost_is_submitted_again(pair: Pair, pool: ThreadPoolExecutor) -> None:
    fleet, worker, front = pair.fleet, pair.worker, pair.front
    held = [submit(pool, front, prompt="hold: x", seed=seed) for seed in (1, 2)]
    worker.wait(running=1)
    until(lambda: fleet.messages(names.WORK) == 2)

    async def purge(client: Client) -> None:
        await client.jetstream().purge_stream("WORK", subject=f"work.{names.token(fleet.model)}.>")

    on_broker(fleet, purge)
    until(lambda: fleet.messages(names.WORK) > 0)
    while not all(each.done() for each in held):
        worker.release()
    assert {each.result().json()["data"][0]["seed"] for each in held} == {1, 2}


def test_a_front_without_network_is_answered_when_it_is_back(
    fleet: Fleet, start: Callable[..., ServerProcess], pool: ThreadPoolExecutor
) -> None:
    proxy = Proxy(fleet.broker.port)
    worker, front = fleet.worker("--max-batch-size", "1"), fleet.front(queue=proxy.url)
    ready(worker, front)
    held = [submit(pool, front, prompt="hold: x", seed=seed) for seed in (1, 2)]
    worker.wait(running=1)
    until(lambda: fleet.messages(names.WORK) == 2)
    proxy.cut()
    until(lambda: fleet.messages(names.WORK) == 0)  # as if the front were dead
    proxy.heal()
    while not all(each.done() for each in held):
        worker.release()
    proxy.close()
    assert {each.result().json()["data"][0]["seed"] for each in held} == {1, 2}


def test_a_worker_drops_the_requests_of_a_front_that_died_before_it_started(
    fleet: Fleet, pool: ThreadPoolExecutor
) -> None:
    first, front = fleet.worker("--max-batch-size", "1"), fleet.front()
    ready(first, front)
    for _ in range(2):
        submit(pool, front, prompt="hold: x")
    until(lambda: fleet.messages(names.WORK) == 2)
    first.process.kill()
    front.process.kill()
    worker = fleet.worker()
    until(lambda: fleet.messages(names.WORK) == 0)
    assert worker.state()["finished"] == worker.state()["running"] == 0


REQUEST = EngineRequest("r", (1,), 64, 64, (1,), SamplingParams((7.0,), mu=0.0, std=1.5))


@pytest.mark.parametrize("reply", ["", "x", "> *", "results.a", "results.a.b.c", "results.*.>"])
def test_a_message_without_a_subject_for_its_results_is_dropped(reply: str) -> None:
    work = Work(reply="results.a.b", request=REQUEST, checkpoint="c", submitted=0.0)
    message = msgspec.msgpack.decode(encode(work)) | {"reply": reply}
    with pytest.raises(msgspec.ValidationError, match="`reply` is not a subject of results"):
        msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=Work)


def test_a_worker_survives_messages_that_it_cannot_answer(pair: Pair) -> None:
    fleet, front = pair.fleet, pair.front

    async def publish(client: Client) -> None:
        subject = names.work(fleet.model, "interactive")
        for content in ({"version": VERSION, "reply": "x"}, {"version": 99, "reply": "nowhere.x"}):
            await client.jetstream().publish(subject, msgspec.msgpack.encode(content))

    on_broker(fleet, publish)
    assert front.create().status_code == 200
    until(lambda: fleet.messages(names.WORK) == 0)


@pytest.mark.parametrize("kind", ["done", "worker.0.0"])
def test_a_result_that_cannot_be_read_fails_its_request_only(
    own_fleet: Fleet, pool: ThreadPoolExecutor, kind: str
) -> None:
    fleet = own_fleet
    worker, front = fleet.worker(), fleet.front()
    ready(worker, front)
    held = submit(pool, front, prompt="hold: x")
    worker.wait(running=1)
    reply = reply_of_running(fleet)

    async def publish(client: Client) -> None:
        for content in (b"garbage", encode({"version": VERSION, "deadline": "x"})):
            await client.publish(f"control.{reply}", content)
            await client.publish(f"progress.{reply}", content)
        await client.publish(f"{reply}.{kind}", b"garbage")

    on_broker(fleet, publish)
    failed = held.result()
    assert (failed.status_code, failed.json()["error"]["code"]) == (500, "generation_failed")
    worker.wait(running=0)
    assert front.create().status_code == 200


def test_a_claim_whose_acknowledgement_was_lost_does_not_block_its_key(own_fleet: Fleet) -> None:
    fleet = own_fleet
    worker, front = fleet.worker(), fleet.front()
    ready(worker, front)
    body = httpx.Request("POST", "http://host", json=small()).read()
    digest = hashlib.sha256(b"png\0" + body).digest()

    async def claim(client: Client) -> None:
        announced = await client.subscribe(names.news(fleet.model, "front", "*"))
        id_ = (await announced.next_msg(60)).subject.rpartition(".")[2]
        bucket = await client.jetstream().key_value(names.CLAIMS.name)
        key = hashlib.sha256(b"anonymous\0key").hexdigest()[:32]
        await bucket.put(key, msgspec.msgpack.encode(Claim(id_, digest)))

    on_broker(fleet, claim)
    headers = {"Idempotency-Key": "key", "X-Request-Timeout": "20"}
    assert front.http.post("/v1/images", json=small(), headers=headers).status_code == 200
