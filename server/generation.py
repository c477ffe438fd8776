"""One accepted request on its way through the engine, followed by one response or several."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from engine.errors import DeadlineExceededError, EngineError, GenerationError
from engine.messages import (
    EngineRequest,
    ImageDone,
    PreviewReady,
    RequestDone,
    RequestFailed,
    RequestOutput,
    StageTimes,
    StepDone,
)
from server.admission import AdmissionSlot
from server.engine_port import Engine
from server.errors import from_engine
from server.images import MEDIA_TYPES, PREVIEW_FORMAT, ImageEncoder
from server.parameters import Parameters
from server.treatment import Treatment

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Course:
    """What a generation asks of others: to be let in with another prompt, and what its files say of it."""

    renew: Callable[[EngineRequest], None]
    describe: Callable[[Parameters], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Preview:
    """A small JPEG of image `image_index` so far."""

    image_index: int
    preview_index: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Picture:
    """One finished file."""

    image_index: int
    seed: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Finished:
    """Seconds of each stage; `image` is the encoding of the files."""

    times: StageTimes
    image: float

    def stages(self) -> dict[str, float]:
        """By the names that `Server-Timing` and the log give them, in the order they happen."""
        times = self.times
        stages = {
            "queue": times.queue,
            "encode": times.encode,
            "denoise": times.denoise,
            "decode": times.decode,
            "image": self.image,
        }
        return {name: round(seconds, 4) for name, seconds in stages.items()}


Event = StepDone | Preview | Picture | Finished


class Generation:
    """Runs until its last follower leaves: a request that nobody waits for is aborted in the engine.

    Its events stay, so that a response that joins later (Idempotency-Key) sees them all.
    """

    def __init__(
        self,
        engine: Engine,
        encoder: ImageEncoder,
        slot: AdmissionSlot,
        parameters: Parameters,
        treatment: Treatment,
        course: Course,
    ) -> None:
        self._slot = slot
        self.parameters = parameters
        self.created = int(time.time())
        self._engine = engine
        self._encoder = encoder
        self._treatment = treatment
        self._course = course
        self._is_prepared = False
        self._image_seconds = 0.0
        self._events: list[Event] = []
        self._news = asyncio.Event()
        self._followers = 0
        self.task = asyncio.create_task(self._run())
        self.task.add_done_callback(lambda _: self._wake())

    @property
    def request(self) -> EngineRequest:
        return self._slot.request

    def join(self) -> None:
        self._followers += 1

    def leave(self) -> None:
        self._followers -= 1
        if self._followers == 0:
            self.task.cancel()

    @property
    def is_abandoned(self) -> bool:
        """Its last follower left before it was done."""
        return self.task.cancelled() or self.task.cancelling() > 0

    @property
    def total_bytes(self) -> int:
        return sum(len(event.data) for event in self._events if isinstance(event, Preview | Picture))

    async def follow(self, idle_seconds: float | None = None) -> AsyncIterator[Event | None]:
        """All events from the first; None after each `idle_seconds` of silence. Raises ApiError."""
        index = 0
        while True:
            while index < len(self._events):
                yield self._events[index]
                index += 1
            if self.task.done():
                self.task.result()
                return
            # Nothing is awaited since the last look at the events, so no news can be missed.
            try:
                await asyncio.wait_for(self._news.wait(), idle_seconds)
            except TimeoutError:
                yield None

    async def prepared(self) -> None:
        """Until the prompt has passed: nothing is on the device before. Raises ApiError."""
        while not (self._is_prepared or self.task.done()):
            await self._news.wait()
        if not self._is_prepared:
            self.task.result()

    async def _run(self) -> None:
        try:
            await self._prepare()
            async with aclosing(self._engine.generate(self.request)) as outputs:
                async for output in outputs:
                    event = await self._event(output)
                    self._events.append(event)
                    self._wake()
        except EngineError as error:
            raise from_engine(error) from error

    async def _prepare(self) -> None:
        work = self._treatment.prepare(self.parameters, self.request.token_ids)
        prepared = await self._in_time(work)
        self.parameters = prepared.parameters
        self._course.renew(replace(self.request, token_ids=prepared.token_ids))
        self._is_prepared = True
        self._wake()

    async def _in_time(self, work: Coroutine[Any, Any, T]) -> T:
        """The deadline goes on while others are asked."""
        try:
            async with asyncio.timeout_at(self.request.deadline):
                return await work
        except TimeoutError:
            raise DeadlineExceededError("the deadline passed") from None

    async def _event(self, output: RequestOutput) -> Event:
        match output:
            case ImageDone():
                return Picture(output.image_index, output.seed, await self._file(output))
            case PreviewReady():
                data = await self._encoder.encode_preview(output.rgb, (output.width, output.height))
                signed = await self._treatment.sign(data, MEDIA_TYPES[PREVIEW_FORMAT])
                return Preview(output.image_index, output.preview_index, signed)
            case RequestDone():
                return Finished(output.times, self._image_seconds)
            case StepDone():
                return output
            case RequestFailed():
                raise GenerationError(output.message)

    async def _file(self, image: ImageDone) -> bytes:
        data = await self._encode(image)
        media_type = MEDIA_TYPES[self.parameters.output_format]
        return await self._in_time(self._treatment.finish(data, media_type))

    async def _encode(self, image: ImageDone) -> bytes:
        started = time.perf_counter()
        wanted = self.parameters
        facts = self._course.describe(wanted) | {"seed": image.seed}
        size = (image.width, image.height)
        data = await self._encoder.encode(image.rgb, size, wanted.output_format, wanted.compression, facts)
        self._image_seconds += time.perf_counter() - started
        return data

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
