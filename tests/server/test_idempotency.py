"""Idempotency-Key: one generation per key and body."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from tests.server import sse
from tests.server.process import HANG, ServerProcess, small, until
from tests.server.test_auth import bearer, write_keys

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
    """A long prompt is tokenised beside the event loop, where two requests could pass each other."""
    server = start()
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(server.create, KEY, prompt="a " * 2000) for _ in range(8)]
        assert len({answer.result().json()["id"] for answer in answers}) == 1
    assert len(server.state()["requests"]) == 1


def test_it_is_aborted_only_when_the_last_one_leaves(start: Start) -> None:
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


def test_a_request_whose_abort_is_under_way_is_not_joined(start: Start) -> None:
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


def test_keys_of_two_callers_are_apart(start: Start, tmp_path: Path) -> None:
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


def test_kept_answers_are_bounded_in_time(start: Start) -> None:
    server = start("--idempotency-seconds", "0.01")
    server.create(KEY)
    until(lambda: server.create(KEY, seed=1).status_code == 200)
