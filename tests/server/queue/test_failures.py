"""What dies, and what the client sees: real processes, with the fake engine."""

import asyncio
import signal
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import msgspec
import nats

from engine.request import EngineRequest, SamplingParams
from server.queue import names
from server.queue.connection.access import Access
from server.queue.connection.check import check_access
from server.queue.wire import VERSION, Done, Work, decode, encode
from tests.server.fake_engine import CONFIG, FakeEngine
from tests.server.process import ServerProcess, until
from tests.server.queue.fleet import Fleet, Pair, ready, stream, submit

REDELIVERED = "ideoserve_queue_redelivered_total"
DEAD_LETTERS = 'ideoserve_queue_dead_letters_total{{reason="{}"}}'


def test_a_request_that_two_workers_die_with_fails_and_no_other(
    fleet: Fleet, pool: ThreadPoolExecutor
) -> None:
    first, front = fleet.worker(), fleet.front()
    ready(first, front)
    held = {seed: submit(pool, front, prompt="hold: x", seed=seed) for seed in (7, 9)}
    first.wait(running=2)
    second = fleet.worker()
    ready(second)
    first.process.kill()
    second.wait(running=1)
    waiting = submit(pool, front, prompt="hold: x", seed=8)
    until(lambda: fleet.messages(names.WORK) == 3)
    (running,) = second.state()["running_requests"]
    third = fleet.worker()
    ready(third)
    second.process.kill()
    while not all(each.done() for each in (*held.values(), waiting)):
        third.release()
    crashed = held.pop(running["seeds"][0]).result()
    assert (crashed.status_code, crashed.json()["error"]["code"]) == (500, "worker_crashed")
    assert {each.result().status_code for each in (*held.values(), waiting)} == {200}
    until(lambda: third.metric(REDELIVERED) == 2)
    assert third.metric(DEAD_LETTERS.format("worker_crashed")) == 1
    until(lambda: fleet.messages(names.WORK) == 0)


def draining(
    fleet: Fleet, pool: ThreadPoolExecutor
) -> tuple[ServerProcess, ServerProcess, ServerProcess, Future[httpx.Response]]:
    """A worker that drains while it holds a request, another worker, the front, and the response to come."""
    first, front = fleet.worker(), fleet.front()
    ready(first, front)
    held = submit(pool, front, prompt="hold: x")
    first.wait(running=1)
    second = fleet.worker()
    ready(second)
    first.terminate()
    until(lambda: first.http.get("/readyz").status_code == 503)
    return first, second, front, held


def test_a_worker_that_drains_finishes_and_pulls_no_more(fleet: Fleet, pool: ThreadPoolExecutor) -> None:
    first, second, front, held = draining(fleet, pool)
    assert front.create().status_code == 200
    assert second.state()["finished"] == 1
    first.release()
    assert held.result().status_code == 200
    assert first.exit_code() == 0
    assert second.metric(REDELIVERED) == 0


def test_a_worker_that_drains_returns_what_it_pulled_before(fleet: Fleet, pool: ThreadPoolExecutor) -> None:
    busy, front = fleet.worker("--max-batch-size", "1"), fleet.front()
    ready(busy, front)
    held = [submit(pool, front, prompt="hold: x")]
    busy.wait(running=1)
    draining = fleet.worker()
    ready(draining)
    held.append(submit(pool, front, prompt="hold: x"))
    draining.wait(running=1)
    draining.terminate()
    until(lambda: draining.http.get("/readyz").status_code == 503)
    waiting = submit(pool, front)
    until(lambda: fleet.messages(names.WORK) == 3)
    busy.release()
    assert waiting.result().status_code == 200
    assert busy.state()["finished"] == 2
    draining.release()
    assert [each.result().status_code for each in held] == [200, 200]


def test_a_worker_that_must_end_gives_its_requests_back(fleet: Fleet, pool: ThreadPoolExecutor) -> None:
    first, second, _, held = draining(fleet, pool)
    first.terminate()
    second.wait(running=1)
    second.release()
    assert held.result().status_code == 200


def test_a_stopped_worker_does_not_answer_twice(own_fleet: Fleet, pool: ThreadPoolExecutor) -> None:
    fleet = own_fleet
    first, front = fleet.worker(), fleet.front()
    ready(first, front)
    held = submit(pool, front, prompt="hold: x", seed=4)
    first.wait(running=1)
    second = fleet.worker()
    ready(second)
    first.process.send_signal(signal.SIGSTOP)
    second.wait(running=1)
    second.release()
    assert held.result().json()["data"][0]["seed"] == 4
    first.process.send_signal(signal.SIGCONT)
    first.release()
    first.wait(running=0)
    until(lambda: fleet.messages(names.WORK) == fleet.messages(names.RESULTS) == 0)
    assert front.create().status_code == 200


def test_a_killed_front_s_requests_end(own_fleet: Fleet, pool: ThreadPoolExecutor) -> None:
    fleet = own_fleet
    worker, front = fleet.worker("--max-batch-size", "1"), fleet.front()
    ready(worker, front)
    for _ in range(2):
        submit(pool, front, prompt="hold: x")
    worker.wait(running=1)
    until(lambda: fleet.messages(names.WORK) == 2)
    front.process.kill()
    worker.wait(running=0)
    until(lambda: fleet.messages(names.WORK) == fleet.messages(names.RESULTS) == 0)
    assert worker.state()["finished"] == 0


def test_what_a_front_left_before_a_worker_started_is_dropped(own_fleet: Fleet) -> None:
    fleet = own_fleet
    sampling = SamplingParams(guidance_schedule=(1.0,), mu=0.0, std=1.0)
    token_ids = FakeEngine().tokenize("hold: x")
    request = EngineRequest("left", token_ids, 64, 64, seeds=(1,), sampling=sampling)
    reply = names.results("gone", "left")
    work = Work(reply=reply, request=request, checkpoint=CONFIG.fingerprint, submitted=0.0)

    async def publish() -> None:
        client = await nats.connect(fleet.broker.url)
        await client.jetstream().publish(names.work(fleet.model, "interactive"), encode(work))
        await client.close()

    check_access(Access((fleet.broker.url,)))
    asyncio.run(publish())
    worker = fleet.worker()
    worker.wait(running=0, aborted=1)
    until(lambda: fleet.messages(names.WORK) == fleet.messages(names.RESULTS) == 0)


def test_a_stopped_front_is_answered_when_it_goes_on(fleet: Fleet, pool: ThreadPoolExecutor) -> None:
    worker, front = fleet.worker(), fleet.front()
    ready(worker, front)
    held = submit(pool, front, prompt="hold: x", seed=3)
    worker.wait(running=1)
    front.process.send_signal(signal.SIGSTOP)
    worker.wait(running=0)  # as if the front were dead
    front.process.send_signal(signal.SIGCONT)
    worker.wait(running=1)
    worker.release()
    assert held.result().json()["data"][0]["seed"] == 3


def test_an_outage_of_the_broker_loses_nothing(own_fleet: Fleet, pool: ThreadPoolExecutor) -> None:
    fleet = own_fleet
    worker, front = fleet.worker("--max-batch-size", "1"), fleet.front()
    ready(worker, front)
    held = [submit(pool, front, prompt="hold: x", seed=seed) for seed in (1, 2)]
    worker.wait(running=1)
    until(lambda: fleet.messages(names.WORK) == 2)
    fleet.broker.kill()
    until(lambda: front.http.get("/readyz").status_code == 503)
    refused = front.create()
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "queue_unavailable")
    assert 0 < int(refused.headers["retry-after"]) <= 60
    assert front.metric("ideoserve_queue_up") == 0
    worker.release()
    worker.wait(running=0)
    until(lambda: worker.metric("ideoserve_queue_unsent") == 1)
    fleet.broker.start()
    worker.wait(running=1)
    worker.release()
    assert {each.result().json()["data"][0]["seed"] for each in held} == {1, 2}
    assert worker.metric(REDELIVERED) == 0
    until(lambda: fleet.messages(names.WORK) == fleet.messages(names.RESULTS) == 0)


def test_a_request_in_the_queue_meets_its_deadline(pair: Pair, pool: ThreadPoolExecutor) -> None:
    fleet, worker, front = pair.fleet, pair.worker, pair.front
    worker.set(seconds_per_step=0.0001)
    held = submit(pool, front, prompt="hold: x", num_inference_steps=1)
    worker.wait(running=1)
    late = front.create({"X-Request-Timeout": "0.5"}, num_inference_steps=1)
    assert late.json()["error"]["code"] in ("deadline_exceeded", "deadline_unreachable")
    until(lambda: fleet.messages(names.WORK) == 1)
    worker.release()
    assert held.result().status_code == 200


def test_a_message_of_another_version_is_answered_and_garbage_is_dropped(pair: Pair) -> None:
    fleet, worker, front = pair.fleet, pair.worker, pair.front
    counts = [DEAD_LETTERS.format(reason) for reason in ("unreadable", "version")]
    before = [worker.metric(count) for count in counts]
    reply = "results.nobody.version"
    subject = names.work(fleet.model, "interactive")

    async def publish() -> Done:
        client = await nats.connect(fleet.broker.url)
        answers = await client.subscribe(f"{reply}.done")
        jetstream = client.jetstream()
        await jetstream.publish(subject, b"garbage")
        await jetstream.publish(subject, msgspec.msgpack.encode({"version": 99, "reply": reply}))
        answer = await answers.next_msg(60)
        await jetstream.purge_stream(names.RESULTS.name, subject=f"{reply}.>")
        await client.close()
        return decode(answer.data, Done)

    done = asyncio.run(publish())
    assert done.error == "version"
    assert "version 99" in done.message
    assert f"reads {VERSION}" in done.message
    assert front.create().status_code == 200
    until(lambda: fleet.messages(names.WORK) == 0)
    assert [worker.metric(count) for count in counts] == [number + 1 for number in before]


def test_a_client_that_leaves_during_an_outage_leaves_nothing(own_fleet: Fleet) -> None:
    fleet = own_fleet
    worker, front = fleet.worker(), fleet.front()
    ready(worker, front)
    with stream(front):
        worker.wait(running=1)
        fleet.broker.kill()
    fleet.broker.start()
    worker.wait(running=0, aborted=1)
    until(lambda: fleet.messages(names.WORK) == fleet.messages(names.RESULTS) == 0)
