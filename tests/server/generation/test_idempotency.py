"""Idempotency-Key: one generation per key and body."""

import asyncio
import gc
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from server.generation.idempotency import Fingerprint, IdempotencyCache
from tests.server import sse
from tests.server.access.test_api_keys import bearer, write_keys
from tests.server.fake_upstream import upstream
from tests.server.generations import generate
from tests.server.process import HANG, ServerProcess, small, until
from tests.server.routes.test_errors import check

Start = Callable[..., ServerProcess]
KEY = {"Idempotency-Key": "k"}


def test_the_answer_is_repeated(start: Start) -> None:
    server = start()
    first, second = server.create(KEY), server.create(KEY)
    assert first.json() == second.json()
    assert len(server.state()["requests"]) == 1


def test_another_body_is_an_error(start: Start) -> None:
    server = start()
    server.create(KEY)
    response = server.create(KEY, seed=1)
    assert (response.status_code, response.json()["error"]["code"]) == (422, "idempotency_key_reused")
    assert server.create({"Idempotency-Key": ""}).status_code == 400
    assert server.create({"Idempotency-Key": "k" * 257}).status_code == 400


def test_a_request_joins_the_one_in_flight(start: Start) -> None:
    server = start("--max-backlog-seconds", "1")
    server.set(seconds_per_step=1)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(server.create, KEY, prompt="hold: a")
        server.wait(running=1)
        second = pool.submit(server.create, KEY, prompt="hold: a")
        third = pool.submit(server.create, KEY | {"Accept": "text/event-stream"}, prompt="hold: a")
        server.release()
        assert first.result().json() == second.result().json()
        events = list(sse.read(third.result().text.split("\n")))
    assert sse.Event("", "progress 0 1/20") in events
    (completed,) = [event.data for event in events if event.name]
    assert completed["b64_json"] == first.result().json()["data"][0]["b64_json"]
    assert len(server.state()["requests"]) == 1


def test_long_prompts_sent_at_once_make_one_generation(start: Start) -> None:
    """Long prompts are tokenized in threads, where requests can overtake each other."""
    server = start()
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(server.create, KEY, prompt="a " * 2000) for _ in range(8)]
        assert len({answer.result().json()["id"] for answer in answers}) == 1
    assert len(server.state()["requests"]) == 1


def test_fifty_at_once_make_one_generation(start: Start) -> None:
    server = start()
    with ThreadPoolExecutor(50) as pool:
        answers = [pool.submit(server.create, KEY, prompt="slow: a", n=2) for _ in range(50)]
        assert {answer.result().status_code for answer in answers} == {200}
        assert len({answer.result().text for answer in answers}) == 1
    assert len(server.state()["requests"]) == 1


@pytest.mark.parametrize("accept", ["application/json", "image/png", "text/event-stream"])
def test_a_joined_request_waits_until_its_own_deadline(start: Start, accept: str) -> None:
    server = start()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(server.create, KEY, prompt="hold: a")
        server.wait(running=1)
        late = server.create(KEY | {"X-Request-Timeout": "0.1", "Accept": accept}, prompt="hold: a")
        if accept == "text/event-stream":
            (error,) = sse.named(late.text.split("\n"))
            assert (error.name, error.data["error"]["code"]) == ("error", "deadline_exceeded")
        else:
            check(late, 504, "deadline_exceeded")
        server.wait(running=1, aborted=0)
        server.release()
        assert first.result().status_code == 200


def test_a_joining_request_raises_the_priority(start: Start) -> None:
    server = start()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(server.create, KEY | {"X-Priority": "batch"}, prompt="hold: a")
        server.wait(running=1)
        second = pool.submit(server.create, KEY | {"X-Priority": "interactive"}, prompt="hold: a")
        until(lambda: server.state()["running_requests"][0]["priority"] == "interactive")
        server.release()
        assert first.result().json() == second.result().json()
    until(lambda: len(server.log_lines(message="request", path="/v1/images")) == 2)
    lines = server.log_lines(message="request", path="/v1/images")
    assert {line["priority"] for line in lines} == {"batch", "interactive"}


def test_the_headers_of_a_joining_request_are_checked(start: Start, tmp_path: Path) -> None:
    """Both when it would join a generation in flight and when it would repeat a kept answer."""
    file = tmp_path / "keys.json"
    write_keys(file, {"name": "a", "key": "a", "priorities": ["batch"]})
    server = start("--api-keys-file", str(file))
    key = KEY | bearer("a")

    def check_headers() -> None:
        for name, value in (("X-Priority", "nonsense"), ("X-Request-Timeout", "soon")):
            check(server.create(key | {name: value}, prompt="hold: a"), 400, "invalid_value", name)
        interactive = key | {"X-Priority": "interactive"}
        check(server.create(interactive, prompt="hold: a"), 403, "priority_not_allowed", "X-Priority")

    with ThreadPoolExecutor() as pool:
        first = pool.submit(server.create, key, prompt="hold: a")
        server.wait(running=1)
        check_headers()
        server.release()
        assert first.result().status_code == 200
    check_headers()


def test_a_generation_is_aborted_when_its_last_client_disconnects(start: Start) -> None:
    server = start()
    body = small(prompt="hold: a", stream=True)
    with httpx.Client(base_url=server.url, timeout=HANG) as other:
        stream = other.send(other.build_request("POST", "/v1/images", json=body, headers=KEY), stream=True)
        server.wait(running=1)
        with server.http.stream("POST", "/v1/images", json=body, headers=KEY) as joined:
            lines = joined.iter_lines()
            assert next(lines) == ": accepted"
            stream.close()
            until(lambda: server.metric("ideoserve_aborts_total") == 1)
            assert server.state()["running"] == 1
            server.release()
            assert sse.named(lines)[-1].name == "image_generation.completed"
    with server.http.stream("POST", "/v1/images", json=body, headers={"Idempotency-Key": "2"}):
        server.wait(running=1)
    server.wait(running=0, aborted=1)


def test_an_abandoned_or_failed_request_runs_again(start: Start) -> None:
    server = start()
    body = small(prompt="hold: a")
    with server.http.stream("POST", "/v1/images", json={**body, "stream": True}, headers=KEY):
        server.wait(running=1)
    server.wait(aborted=1)
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(server.create, KEY, prompt="hold: a", stream=True)
        server.wait(running=1)
        server.release()
        assert "image_generation.completed" in answer.result().text
    fails = {"Idempotency-Key": "f"}
    assert [server.create(fails, prompt="fail: a").status_code for _ in range(2)] == [500, 500]
    assert len(server.state()["requests"]) == 4


def test_a_request_that_is_being_aborted_is_not_joined(start: Start) -> None:
    server = start()
    body = small(prompt="linger: a", stream=True)
    with server.http.stream("POST", "/v1/images", json=body, headers=KEY):
        server.wait(running=1)
    until(lambda: server.metric("ideoserve_aborts_total") == 1)
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(server.create, KEY, prompt="linger: a", stream=True)
        server.wait(running=2)
        server.release()
        assert "image_generation.completed" in answer.result().text


def test_keys_of_two_callers_are_independent(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    write_keys(file, {"name": "a", "key": "a"}, {"name": "b", "key": "b"})
    server = start("--api-keys-file", str(file))
    assert server.create(KEY | bearer("a"), seed=1).status_code == 200
    assert server.create(KEY | bearer("b"), seed=2).status_code == 200


def test_kept_answers_are_bounded_in_memory(start: Start) -> None:
    server = start("--idempotency-bytes", "40000")
    for number in range(20):
        server.create({"Idempotency-Key": str(number)})
    server.create({"Idempotency-Key": "19"})
    assert len(server.state()["requests"]) == 20
    server.create({"Idempotency-Key": "0"})
    assert len(server.state()["requests"]) == 21


@pytest.mark.parametrize("of", ["prompt", "image"])
def test_a_kept_refusal_holds_neither_body_nor_image(start: Start, of: str) -> None:
    """30 MB of bodies are sent."""
    with upstream(lambda _: True, {"flagged": True, "categories": ["hate"]}) as webhook:
        server = start(f"--{of}-moderation", "webhook", "--moderation-webhook-url", webhook.url)

        def refuse(number: int) -> int:
            body = {"prompt": "noise: a", "size": "256x256", "user": "x" * 1_000_000}
            return server.create({"Idempotency-Key": str(number)}, **body).status_code

        assert [refuse(number) for number in range(5)] == [400] * 5
        before = server.metric("process_resident_memory_bytes")
        assert [refuse(number) for number in range(5, 35)] == [400] * 30
        assert server.metric("process_resident_memory_bytes") < before + (12 << 20)
        asked = len(webhook.asked)
        assert refuse(34) == 400
        assert len(webhook.asked) == asked


def test_kept_files_stay_within_their_memory_bound(start: Start) -> None:
    """40 MB of images are made."""
    server = start("--idempotency-bytes", str(8 << 20))

    def create(headers: dict[str, str]) -> int:
        body = {"prompt": "noise: a", "size": "256x256", "n": 10, "num_inference_steps": 1}
        return server.create(headers, **body).status_code

    assert [create({}) for _ in range(4)] == [200] * 4
    before = server.metric("process_resident_memory_bytes")
    assert [create({"Idempotency-Key": str(number)}) for number in range(20)] == [200] * 20
    assert server.metric("process_resident_memory_bytes") < before + 1.5 * (8 << 20) + (8 << 20)


async def keep(kept: IdempotencyCache, numbers: range) -> None:
    """Keep answers of ten images each, made with steps and previews."""
    for number in numbers:
        generation = generate("a cat", n=10, num_inference_steps=20, partial_images=3)
        subscription = generation.subscribe(time.monotonic() + HANG, "interactive")
        kept.add(Fingerprint("anonymous", f"{number:0256}", number.to_bytes(32)), generation)
        await subscription.done()
        subscription.leave()
    gc.collect()


def test_counted_bytes_match_allocated_bytes() -> None:
    async def measure() -> tuple[int, int]:
        kept = IdempotencyCache(600, 1 << 40)
        tracemalloc.start()
        await keep(kept, range(5))
        held, counted = tracemalloc.get_traced_memory()[0], kept.total_bytes
        await keep(kept, range(5, 20))
        held, counted = tracemalloc.get_traced_memory()[0] - held, kept.total_bytes - counted
        tracemalloc.stop()
        return held, counted

    held, counted = asyncio.run(measure())
    assert 0.5 * counted < held < 1.25 * counted


def test_kept_answers_are_bounded_in_time(start: Start) -> None:
    server = start("--idempotency-seconds", "0.01")
    server.create(KEY)
    until(lambda: server.create(KEY, seed=1).status_code == 200)
