"""One accepted request on its way through the engine, followed by one response or several."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from engine.errors import EngineError, GenerationError
from engine.messages import (
    ImageDone,
    PreviewReady,
    RequestDone,
    RequestFailed,
    RequestOutput,
    StageTimes,
    StepDone,
)
from server.admission import Ticket
from server.engine_port import Engine
from server.errors import from_engine
from server.images import ImageEncoder
from server.parameters import Parameters


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
        ticket: Ticket,
        parameters: Parameters,
        facts: dict[str, Any],
    ) -> None:
        self.request = ticket.request
        self._ticket = ticket
        self.parameters = parameters
        self.created = int(time.time())
        self._engine = engine
        self._encoder = encoder
        self._facts = facts
        self._image_seconds = 0.0
        self._events: list[Event] = []
        self._news = asyncio.Event()
        self._followers = 0
        self.task = asyncio.create_task(self._run())
        self.task.add_done_callback(lambda _: self._wake())

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

    async def _run(self) -> None:
        self._ticket.begin()
        try:
            async with aclosing(self._engine.generate(self.request)) as outputs:
                async for output in outputs:
                    event = await self._event(output)
                    self._events.append(event)
                    self._wake()
        except EngineError as error:
            raise from_engine(error) from error

    async def _event(self, output: RequestOutput) -> Event:
        match output:
            case ImageDone():
                return Picture(output.image_index, output.seed, await self._encode(output))
            case PreviewReady():
                data = await self._encoder.encode_preview(output.rgb, (output.width, output.height))
                return Preview(output.image_index, output.preview_index, data)
            case RequestDone():
                return Finished(output.times, self._image_seconds)
            case StepDone():
                self._ticket.step(output.image_index, output.step, output.num_steps)
                return output
            case RequestFailed():
                raise GenerationError(output.message)

    async def _encode(self, image: ImageDone) -> bytes:
        started = time.perf_counter()
        wanted = self.parameters
        facts = self._facts | {"seed": image.seed}
        size = (image.width, image.height)
        data = await self._encoder.encode(image.rgb, size, wanted.output_format, wanted.compression, facts)
        self._image_seconds += time.perf_counter() - started
        return data

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
