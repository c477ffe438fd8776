"""A generation and its subscriptions, in this process."""

import asyncio
import json
import time
from collections.abc import Awaitable
from typing import TypeVar

import pytest

from server.generation.generation import Generation
from server.generation.parameters import Parameters
from server.generation.processing import Processing
from server.generation.transcript import Event, ImageFile, Subscription, Timings
from server.magic_prompt.expander import TokenIds
from server.schemas.errors import ApiError
from tests.server.fake_engine import FakeEngine
from tests.server.generations import generate

T = TypeVar("T")
SECONDS = 60  # until a hanging test fails


def run(work: Awaitable[T]) -> T:
    async def within_time() -> T:
        async with asyncio.timeout(SECONDS):
            return await work

    return asyncio.run(within_time())


def subscribe(generation: Generation, seconds: float = SECONDS) -> Subscription:
    return generation.subscribe(time.monotonic() + seconds, "batch")


async def slow(subscription: Subscription, turns: int) -> list[Event]:
    """Read all events, with turns of the event loop between them, as while a response is sent."""
    events = []
    async for event in subscription.events(idle_seconds=60):
        assert event is not None
        events.append(event)
        for _ in range(turns):
            await asyncio.sleep(0)
    return events


async def code(work: Awaitable[object]) -> str:
    """The code of the error that `work` raises."""
    with pytest.raises(ApiError) as caught:
        await work
    body = json.loads(caught.value.body().model_dump_json())
    return str(body["error"]["code"])


class HeldProcessing(Processing):
    """Prepares the prompt once `release` is set."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self._moderation = self._credentials = None

    async def prepare(self, parameters: Parameters, token_ids: TokenIds) -> tuple[Parameters, TokenIds]:
        await self.release.wait()
        return parameters, token_ids


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 100])
def test_a_slow_subscription_misses_nothing(turns: int) -> None:
    async def follow() -> list[Event]:
        return await slow(subscribe(generate("a cat", n=2)), turns)

    events = run(follow())
    assert len(events) == 2 * 20 + 2 + 1
    assert isinstance(events[-1], Timings)


def test_subscriptions_see_the_same_from_the_first_event_on() -> None:
    async def follow() -> tuple[list[Event], list[Event], list[Event]]:
        running = generate("a cat", n=2)
        first, second = await asyncio.gather(slow(subscribe(running), 0), slow(subscribe(running), 3))
        return first, second, await slow(subscribe(running), 0)

    first, second, late = run(follow())
    assert first == second == late
    assert sum(isinstance(event, ImageFile) for event in first) == 2


def test_what_is_kept_is_what_a_repeated_answer_shows() -> None:
    async def follow() -> tuple[Generation, list[Event]]:
        running = generate("a cat", n=2, partial_images=3)
        await slow(subscribe(running), 0)
        return running, await slow(Subscription(running.transcript.kept(), time.monotonic() + SECONDS), 0)

    running, repeated = run(follow())
    shown = [event for event in running.transcript.events if isinstance(event, ImageFile | Timings)]
    assert repeated == shown
    assert len(shown) == 3


def test_every_subscription_hears_of_a_failure() -> None:
    """Each gets its own exception, without the frames of another."""

    async def follow() -> list[list[Event] | BaseException]:
        running = generate("fail: a cat")
        subscriptions = slow(subscribe(running), 0), slow(subscribe(running), 1)
        return list(await asyncio.gather(*subscriptions, return_exceptions=True))

    first, second = run(follow())
    assert isinstance(first, ApiError)
    assert isinstance(second, ApiError)
    assert first.code == second.code == "generation_failed"
    assert first is not second


def test_a_deadline_ends_the_wait_of_one_subscription_and_the_latest_that_of_the_request() -> None:
    async def follow() -> None:
        engine = FakeEngine(seconds_per_step=0)
        running = generate("hold: a cat", engine)
        hasty, patient = subscribe(running, 0.05), subscribe(running)
        waiting = asyncio.create_task(slow(patient, 0))
        assert await code(slow(hasty, 0)) == "deadline_exceeded"
        hasty.leave()
        await engine.resume()
        assert isinstance((await waiting)[-1], Timings)

    run(follow())


def test_a_subscription_lengthens_the_deadline_of_a_request_that_runs() -> None:
    async def follow() -> None:
        engine = FakeEngine(seconds_per_step=0)
        running = generate("hold: a cat", engine, deadline=time.monotonic() + 0.2)
        hasty = asyncio.create_task(code(slow(subscribe(running, 0.2), 0)))
        await engine.wait_for(lambda: engine.running == 1)
        patient = asyncio.create_task(slow(subscribe(running), 0))
        assert await hasty == "deadline_exceeded"
        await engine.resume()
        assert isinstance((await patient)[-1], Timings)

    run(follow())


def test_a_subscription_lengthens_the_deadline_of_a_prompt_that_is_prepared() -> None:
    async def follow() -> None:
        processing = HeldProcessing()
        running = generate("a cat", processing=processing, deadline=time.monotonic() + 0.1)
        hasty, patient = subscribe(running, 0.1), subscribe(running)
        assert await code(hasty.prepared()) == "deadline_exceeded"
        hasty.leave()
        processing.release.set()
        await patient.prepared()
        assert isinstance((await slow(patient, 0))[-1], Timings)

    run(follow())


def test_a_request_that_all_left_at_their_deadlines_is_aborted() -> None:
    async def follow() -> None:
        engine = FakeEngine(seconds_per_step=0)
        running = generate("hold: a cat", engine)
        subscription = subscribe(running, 0.05)
        assert await code(slow(subscription, 0)) == "deadline_exceeded"
        subscription.leave()
        await engine.wait_for(lambda: engine.aborted == 1)

    run(follow())


def test_the_highest_priority_of_the_subscriptions_counts() -> None:
    async def follow() -> None:
        engine = FakeEngine(seconds_per_step=0)
        running = generate("hold: a cat", engine)
        subscribe(running)
        await engine.wait_for(lambda: engine.running == 1)
        priorities = []
        for priority in ("batch", "interactive", "batch"):
            running.subscribe(time.monotonic() + SECONDS, priority)
            priorities.append(engine.running_requests[0].priority)
        assert priorities == ["batch", "interactive", "interactive"]
        await engine.resume()
        await running.task

    run(follow())


def test_a_subscription_of_what_was_cancelled_is_answered() -> None:
    async def follow() -> None:
        engine = FakeEngine(seconds_per_step=0)
        running = generate("hold: a cat", engine)
        subscription = subscribe(running)
        await engine.wait_for(lambda: engine.running == 1)
        running.task.cancel()
        assert await code(slow(subscription, 0)) == "server_draining"

    run(follow())


def test_an_error_is_copied_without_its_frames() -> None:
    try:
        raise ApiError(418, "teapot", "Short and stout.", param="spout", retry_after=3, retry=False)
    except ApiError as error:
        copy, body, headers = error.copy(), error.body(), error.headers
    assert (copy.status, copy.body(), copy.headers) == (418, body, headers)
    assert copy.__traceback__ is None
    assert copy.__context__ is None
