"""The events of a generation, and subscriptions to them."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace

from engine.errors import DeadlineExceededError
from engine.messages import StageTimes, StepDone
from server.generation.parameters import Parameters
from server.schemas.caption_fault import Fault
from server.schemas.errors import ApiError, from_engine


@dataclass(frozen=True, slots=True)
class Preview:
    """A small JPEG of image `image_index` so far."""

    image_index: int
    preview_index: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One finished file."""

    image_index: int
    seed: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Timings:
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


Event = StepDone | Preview | ImageFile | Timings


@dataclass(slots=True)
class Transcript:
    """Events from the first on and, once done, the `failure` if there was one.

    What the request itself says is not repeated here; what was chosen for it is: seeds, the prompt's
    expansion, warnings.
    """

    request_id: str
    seeds: tuple[int, ...]
    created: int = field(default_factory=lambda: int(time.time()))
    prompt_tokens: int = 0
    revised_prompt: str | None = None
    warnings: tuple[Fault, ...] = ()
    events: list[Event] = field(default_factory=list)
    failure: ApiError | None = None
    is_prepared: bool = False
    is_done: bool = False
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def prepared(self, parameters: Parameters, prompt_tokens: int) -> None:
        """The prompt has passed, as `parameters` has it now."""
        prompt = parameters.prompt
        self.prompt_tokens, self.warnings = prompt_tokens, prompt.warnings
        self.revised_prompt = prompt.revised().get("revised_prompt")
        self.is_prepared = True
        self._wake()

    def add(self, event: Event) -> None:
        self.events.append(event)
        self._wake()

    def finish(self, failure: ApiError | None = None) -> None:
        """Nothing is added from now on."""
        self.failure, self.is_done = failure, True
        self._wake()

    async def news(self) -> None:
        """Until something changes."""
        await self._news.wait()

    def parameters(self, own: Parameters) -> Parameters:
        """What was drawn, for a request that asks with `own`."""
        prompt = own.prompt.drawn(self.revised_prompt, self.warnings)
        return replace(own, seeds=self.seeds, prompt=prompt)

    def kept(self) -> "Transcript":
        """As much of it as a repeated answer shows: no steps, no previews."""
        shown: list[Event] = [event for event in self.events if isinstance(event, ImageFile | Timings)]
        return replace(self, events=shown)

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Subscription:
    """Waits until its own `deadline` (`time.monotonic()`) and no longer, whatever those of others are.

    To be left, once, when the response is done.
    """

    transcript: Transcript
    deadline: float
    leave: Callable[[], None] = _nothing

    async def prepared(self) -> None:
        """Until the prompt has passed: nothing is on the device before. Raises ApiError."""
        while not (self.transcript.is_prepared or self.transcript.is_done):
            await self._news(self.deadline)
        if not self.transcript.is_prepared:
            self._raise_failure()

    async def events(self, idle_seconds: float | None = None) -> AsyncIterator[Event | None]:
        """All events from the first; None after each `idle_seconds` of silence. Raises ApiError."""
        index = 0
        while True:
            while index < len(self.transcript.events):
                yield self.transcript.events[index]
                index += 1
            if self.transcript.is_done:
                self._raise_failure()
                return
            # Nothing is awaited since the last look at the events, so no news can be missed.
            idle = time.monotonic() + idle_seconds if idle_seconds is not None else self.deadline
            if not await self._news(min(idle, self.deadline)):
                yield None

    def _raise_failure(self) -> None:
        if self.transcript.failure:
            raise self.transcript.failure.copy()

    async def _news(self, until: float) -> bool:
        """Whether there is any. Raises ApiError 504 at the deadline."""
        try:
            async with asyncio.timeout_at(until):
                await self.transcript.news()
            return True
        except TimeoutError:
            if until < self.deadline:
                return False
        raise from_engine(DeadlineExceededError("the deadline passed"))
