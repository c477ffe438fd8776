"""The events of a generation, and the subscriptions through which responses read them."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace

from engine.errors import DeadlineExceededError, EngineError
from engine.messages import StageTimes, StepDone
from server.generation.parameters import Parameters
from server.schemas.errors import ApiError, from_engine
from server.schemas.issue import Issue


@dataclass(frozen=True, slots=True)
class Preview:
    """A small JPEG of the unfinished image `image_index`."""

    image_index: int
    preview_index: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A finished image as a file."""

    image_index: int
    seed: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of each stage; `image` is the time to encode the files. The last event."""

    times: StageTimes
    image: float

    def stages(self) -> dict[str, float]:
        """By the names used in `Server-Timing` and the log, in order."""
        times = self.times
        stages = {
            "queue": times.queue,
            "encode": times.encode,
            "denoise": times.denoise,
            "decode": times.decode,
            "image": self.image,
        }
        return {name: round(seconds, 4) for name, seconds in stages.items()}


Event = StepDone | Preview | ImageFile | Timings


@dataclass(frozen=True, slots=True)
class QueueState:
    """Of a request that has not begun. `position` is 1 for the next one; `predicted_seconds` is an upper
    bound of the time until it is done."""

    position: int
    predicted_seconds: float


@dataclass(slots=True)
class Transcript:
    """All events so far and, once done, the `failure` if there was one.

    Holds what was decided for the request (seeds, expanded prompt, warnings), not the request.
    """

    request_id: str
    seeds: tuple[int, ...]
    created: int = field(default_factory=lambda: int(time.time()))
    prompt_tokens: int = 0
    revised_prompt: str | None = None
    warnings: tuple[Issue, ...] = ()
    events: list[Event] = field(default_factory=list)
    failure: ApiError | None = None
    is_prepared: bool = False
    is_done: bool = False
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def prepared(self, parameters: Parameters, prompt_tokens: int) -> None:
        """The prompt was accepted; `parameters` are those to generate with."""
        prompt = parameters.prompt
        self.prompt_tokens, self.warnings = prompt_tokens, prompt.warnings
        self.revised_prompt = prompt.revised().get("revised_prompt")
        self.is_prepared = True
        self._notify()

    def add(self, event: Event) -> None:
        self.events.append(event)
        self._notify()

    def finish(self, failure: ApiError | None = None) -> None:
        """No event follows."""
        self.failure, self.is_done = failure, True
        self._notify()

    def adopt(self, other: "Transcript") -> None:
        """Finish as another one of the same request did. Images that are there already stay."""
        self.request_id, self.seeds, self.created = other.request_id, other.seeds, other.created
        self.prompt_tokens, self.revised_prompt = other.prompt_tokens, other.revised_prompt
        self.warnings, self.is_prepared = other.warnings, other.is_prepared
        there = {image.image_index for image in self.images}
        for event in other.events:
            if not (isinstance(event, ImageFile) and event.image_index in there):
                self.events.append(event)
        self.finish(other.failure)

    async def changed(self) -> None:
        """Return at the next change."""
        await self._changed.wait()

    @property
    def images(self) -> list[ImageFile]:
        """In the order of their indices."""
        images = (event for event in self.events if isinstance(event, ImageFile))
        return sorted(images, key=lambda image: image.image_index)

    @property
    def timings(self) -> Timings:
        """Of a generation that succeeded."""
        return next(event for event in self.events if isinstance(event, Timings))

    def parameters(self, requested: Parameters) -> Parameters:
        """The parameters of a request with what was decided for this generation."""
        prompt = requested.prompt.drawn(self.revised_prompt, self.warnings)
        return replace(requested, seeds=self.seeds, prompt=prompt)

    def kept(self) -> "Transcript":
        """A copy without steps and previews, for repeated responses."""
        kept: list[Event] = [event for event in self.events if isinstance(event, ImageFile | Timings)]
        return replace(self, events=kept)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class TakenOverError(EngineError):
    """Another server runs the request, because it took this one for dead."""


class AnsweredError(EngineError):
    """Another server has finished the request, with this transcript."""

    def __init__(self, transcript: Transcript) -> None:
        super().__init__("another server has answered the request")
        self.transcript = transcript


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Subscription:
    """One response's view of a transcript, with a deadline (`time.monotonic()`) that is independent of other
    subscriptions. Call `leave` exactly once, when the response is done."""

    transcript: Transcript
    deadline: float
    leave: Callable[[], None] = _nothing
    queue_state: Callable[[], QueueState | None] = _nothing

    async def prepared(self) -> None:
        """Wait until the prompt is accepted, before any device work. Raises ApiError."""
        while not (self.transcript.is_prepared or self.transcript.is_done):
            await self._change(self.deadline)
        if not self.transcript.is_prepared:
            self._raise_failure()

    async def done(self) -> None:
        """Wait until the last event. Raises ApiError."""
        while not self.transcript.is_done:
            await self._change(self.deadline)
        self._raise_failure()

    async def events(self, idle_seconds: float) -> AsyncIterator[Event | None]:
        """All events from the first; None after each `idle_seconds` without one. Raises ApiError."""
        index = 0
        while True:
            while index < len(self.transcript.events):
                yield self.transcript.events[index]
                index += 1
            if self.transcript.is_done:
                self._raise_failure()
                return
            # Nothing was awaited since the last look at the events, so no change is missed.
            if not await self._change(min(time.monotonic() + idle_seconds, self.deadline)):
                yield None

    def _raise_failure(self) -> None:
        if self.transcript.failure:
            raise self.transcript.failure.copy()

    async def _change(self, until: float) -> bool:
        """Wait for a change until then; whether there was one. Raises ApiError 504 at the deadline."""
        try:
            async with asyncio.timeout_at(until):
                await self.transcript.changed()
            return True
        except TimeoutError:
            if until < self.deadline:
                return False
        raise from_engine(DeadlineExceededError("the deadline passed"))
