"""A generation and its followers, in this process."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from engine.config import ModelConfig
from engine.messages import EngineRequest, SamplingParams
from server.admission import Admission
from server.auth import Caller
from server.backends import Backends
from server.choices import Choices
from server.errors import ApiError
from server.generation import Course, Event, Finished, Generation, Picture
from server.images import ImageEncoder
from server.parameters import resolve
from server.protocol import ImageRequest
from server.safety import Safety
from server.settings import Settings
from server.treatment import Treatment
from tests.server.fake_engine import CONFIG, FakeEngine

BACKENDS = Backends(lambda *_: None)


async def tokenize(prompt: str) -> tuple[int, ...]:
    return tuple(prompt.encode())


@asynccontextmanager
async def generation(prompt: str, config: ModelConfig = CONFIG) -> AsyncIterator[Generation]:
    engine, encoder = FakeEngine(config), ImageEncoder(1, 1)
    parameters = resolve(ImageRequest.model_validate({"prompt": prompt, "n": 2, "seed": 1}), config)
    sampling = SamplingParams(parameters.sampling.guidance_schedule, 0, 1)
    request = EngineRequest("id", engine.tokenize(prompt), 64, 64, parameters.seeds, sampling)
    slot = Admission(engine, 100, 1).admit(request, Caller())
    async with asyncio.timeout(20):
        course = Course(renew=lambda _: None, describe=lambda _: {})
        treatment = Treatment(Safety(Settings(model="fake"), BACKENDS, "fake"), Choices(), encoder, tokenize)
        yield Generation(engine, encoder, slot, parameters, treatment, course)
    encoder.close()


async def slow(generation: Generation, turns: int) -> list[Event]:
    """Follow, but let the event loop turn between two events, as a response does while it sends."""
    events = []
    async for event in generation.follow(idle_seconds=60):
        assert event is not None
        events.append(event)
        for _ in range(turns):
            await asyncio.sleep(0)
    return events


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 100])
def test_a_slow_follower_misses_nothing(turns: int) -> None:
    async def run() -> list[Event]:
        async with generation("a cat") as running:
            return await slow(running, turns)

    events = asyncio.run(run())
    assert len(events) == 2 * 20 + 2 + 1
    assert isinstance(events[-1], Finished)


def test_followers_see_the_same_from_the_first_event_on() -> None:
    async def run() -> tuple[list[Event], list[Event], list[Event]]:
        async with generation("a cat") as running:
            first, second = await asyncio.gather(slow(running, 0), slow(running, 3))
            return first, second, await slow(running, 0)

    first, second, late = asyncio.run(run())
    assert first == second == late
    assert sum(isinstance(event, Picture) for event in first) == 2


def test_every_follower_hears_of_a_failure() -> None:
    async def run() -> list[list[Event] | BaseException]:
        async with generation("fail: a cat") as running:
            return list(await asyncio.gather(slow(running, 0), slow(running, 1), return_exceptions=True))

    for error in asyncio.run(run()):
        assert isinstance(error, ApiError)
        assert json.loads(error.body().model_dump_json())["error"]["code"] == "generation_failed"
