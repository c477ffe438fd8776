"""What came of a request so far, as data alone: its followers share it, and KeptAnswers may keep it."""

import asyncio
import time
from dataclasses import dataclass, field, replace

from engine.messages import StageTimes, StepDone
from server.generation.parameters import Parameters
from server.schemas.caption_fault import Fault
from server.schemas.errors import ApiError


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
        shown: list[Event] = [event for event in self.events if isinstance(event, Picture | Finished)]
        return replace(self, events=shown)

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
