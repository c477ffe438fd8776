"""An engine without a model, with the interface of `EngineClient`. Its images have one colour, which an
edit blends with its source.

A prompt of the form `WORD: text` controls it: `hold` waits at the first step until `resume()`, `linger` also
waits when it is aborted; `deadline`, `fail`, `crash` and `bug` raise that error, `slow` takes 50 ms a step,
`die` kills the engine, `wait` begins at `resume()`, `noise` makes images that cannot be compressed.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from engine.client.backlog import Forecast
from engine.config.model_config import Limits, ModelConfig
from engine.config.part_folders import PartFolders
from engine.cost import CostModel, DeviceSpeed, LinearCost
from engine.errors import (
    DeadlineExceededError,
    EngineDeadError,
    GenerationError,
    PromptTooLongError,
    WorkerCrashedError,
)
from engine.messages import (
    ImageDone,
    PreviewReady,
    RequestDone,
    RequestOutput,
    StageTimes,
    StepDone,
    UnitKind,
)
from engine.precision import Precision
from engine.request import EngineRequest, Priority, SourceImage

DEMO = Path(__file__).parents[2] / "models" / "demo"
PRECISION = Precision("fp8", widened=True, matmul="exact", dtype="bfloat16")
CONFIG = ModelConfig(
    path=Path("fake"),
    folders=PartFolders.of(DEMO),  # whose configs adapters must fit
    model_id="fake-model",
    created=1_750_000_000,
    fingerprint="0123456789ab",
    limits=Limits(min_size=64, max_size=256, multiple_of=16, max_aspect_ratio=3.0, max_prompt_tokens=2048),
    default_width=128,
    default_height=128,
    can_edit=True,
)
ERRORS: dict[str, Exception] = {
    "deadline": DeadlineExceededError("the deadline passed"),
    "fail": GenerationError("NaN in /secret/path"),
    "crash": WorkerCrashedError("twice"),
    "bug": KeyError("/secret/path"),
}
# Their token ids are the same in every process, unlike those of other words.
WORDS = (*ERRORS, "hold", "linger", "slow", "die", "noise", "wait")


@dataclass
class FakeStats:
    running: int = 0
    waiting: int = 0
    restarts: int = 0
    device_memory_bytes: int = 1 << 30
    cache_hits: int = 0
    cache_misses: int = 0
    start_seconds: float = 12.5
    devices: dict[str, int] = field(
        default_factory=lambda: {"ready": 1, "silent": 0, "starting": 0, "failed": 0}
    )


@dataclass
class FakeInFlight:
    request: EngineRequest
    deadline: float | None = None
    has_begun: bool = False


@dataclass
class FakeEngine:
    """One device. `seconds_per_step` is predicted; a step takes no time."""

    config: ModelConfig = CONFIG
    is_ready: bool = True
    precision: Precision | None = PRECISION
    seconds_per_step: float = 0.1
    max_batch_size: int = 8
    finished: int = 0
    aborted: int = 0
    requests: deque[EngineRequest] = field(default_factory=lambda: deque(maxlen=100))

    def __post_init__(self) -> None:
        self._in_flight: dict[str, FakeInFlight] = {}
        self._running: dict[str, EngineRequest] = {}
        self._listeners: list[Callable[[UnitKind, int, float], None]] = []
        self._released = asyncio.Event()
        self._changed = asyncio.Condition()
        self._death: EngineDeadError | None = None

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def wait_dead(self) -> EngineDeadError:
        await self.wait_for(lambda: self._death is not None)
        assert self._death
        return self._death

    def tokenize(self, prompt: str) -> tuple[int, ...]:
        words = prompt.split()
        if len(words) > self.config.limits.max_prompt_tokens:
            raise PromptTooLongError(len(words), self.config.limits.max_prompt_tokens)
        return tuple(map(_token_id, words)) or (0,)

    def forecast(self, request: EngineRequest) -> list[Forecast]:
        others = [each for name, each in self._in_flight.items() if name != request.request_id]
        return [Forecast(self._ahead(others, request.priority), self._seconds(request))]

    def speeds(self) -> list[DeviceSpeed]:
        step = LinearCost(self.seconds_per_step / 2, 0.0)  # with guidance, a step has two passes
        cost = CostModel(step, LinearCost(0.0, 0.0), LinearCost(0.0, 0.0), 16, self.max_batch_size, 32_768)
        return [DeviceSpeed(cost, is_proven=True)] if self.is_ready else []

    def backlog_seconds(self, priority: Priority) -> float:
        return self._ahead(self._in_flight.values(), priority)

    def first_done_seconds(self, request_ids: Iterable[str]) -> float:
        return min((self._seconds(self._in_flight[name].request) for name in request_ids), default=0.0)

    def reserve(self, request: EngineRequest, deadline: float | None = None) -> FakeInFlight:
        in_flight = self._in_flight.setdefault(request.request_id, FakeInFlight(request, deadline))
        in_flight.request = request
        return in_flight

    def release(self, request_id: str) -> None:
        self._in_flight.pop(request_id, None)

    def promote(self, request_id: str, deadline: float | None, priority: Priority) -> None:
        in_flight = self._in_flight.get(request_id)
        if in_flight is None:
            return
        own = in_flight.deadline
        in_flight.deadline = None if own is None or deadline is None else max(own, deadline)
        if priority == "interactive":
            in_flight.request = replace(in_flight.request, priority=priority)

    def stats(self) -> FakeStats:
        return FakeStats(running=len(self._running))

    def subscribe(self, listener: Callable[[UnitKind, int, float], None]) -> None:
        self._listeners.append(listener)

    async def resume(self) -> None:
        """Continue all held requests."""
        self._released.set()
        self._released = asyncio.Event()

    async def wait_for(self, predicate: Callable[[], bool]) -> None:
        """Wait until the predicate is true of the engine's counters."""
        async with self._changed:
            await self._changed.wait_for(predicate)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def running_requests(self) -> list[EngineRequest]:
        """With their promotions."""
        return [self._in_flight[name].request for name in self._running]

    async def generate(self, request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
        self.reserve(request)
        self.requests.append(request)
        self._running[request.request_id] = request
        await self._notify()
        done = False
        try:
            async for output in self._outputs(request):
                yield output
            done = True
        finally:
            if not done and self._word(request) == "linger":
                await self._released.wait()
            self.release(request.request_id)
            del self._running[request.request_id]
            self.finished += done
            self.aborted += not done
            await self._notify()

    async def _outputs(self, request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
        word = self._word(request)
        started = time.monotonic()
        self._unit("encode")
        if word == "wait":
            await self._until_released(request.request_id)
        self._in_flight[request.request_id].has_begun = True
        for index, seed in enumerate(request.seeds):
            async for output in self._steps(request, word, index):
                yield output
            self._unit("decode")
            rgb = _edited(_rgb(word, seed, index, request.width * request.height), request.source)
            yield ImageDone(
                request.request_id, index, seed, request.width, request.height, rgb, self.precision
            )
        yield RequestDone(request.request_id, StageTimes(0.001, 0.002, time.monotonic() - started, 0.004))

    async def _steps(
        self, request: EngineRequest, word: str, index: int
    ) -> AsyncGenerator[StepDone | PreviewReady, None]:
        steps = request.sampling.num_inference_steps
        for step in range(1, steps + 1):
            self._unit("denoise")
            yield StepDone(request.request_id, index, step, steps)
            if step <= request.num_previews:
                rgb = bytes((255, step, 0)) * 64
                yield PreviewReady(request.request_id, index, step - 1, 8, 8, rgb)
            await self._act(request.request_id, word, step)

    async def _act(self, request_id: str, word: str, step: int) -> None:
        if word in ERRORS:
            raise ERRORS[word].with_traceback(None)
        if word == "die":
            self._death = EngineDeadError("the worker cannot be started again")
            self.is_ready = False
            await self.resume()
        if word in ("hold", "linger") and step == 1:
            await self._until_released(request_id)
        if self._death:
            raise self._death
        await asyncio.sleep(0.05 if word == "slow" else 0)

    async def _until_released(self, request_id: str) -> None:
        """Or until the deadline, which can be extended meanwhile."""
        released = self._released
        while not released.is_set():
            deadline = self._in_flight[request_id].deadline
            try:
                async with asyncio.timeout_at(deadline):
                    await released.wait()
            except TimeoutError:
                if self._in_flight[request_id].deadline == deadline:
                    raise ERRORS["deadline"] from None

    def _ahead(self, others: Iterable[FakeInFlight], priority: Priority) -> float:
        ahead = (each.request for each in others if priority in ("batch", each.request.priority))
        return sum(map(self._seconds, ahead))

    def _seconds(self, request: EngineRequest) -> float:
        return self.seconds_per_step * request.sampling.num_inference_steps * len(request.seeds)

    def _word(self, request: EngineRequest) -> str:
        return dict(enumerate(WORDS, 1)).get(request.token_ids[0], "")

    def _unit(self, kind: UnitKind) -> None:
        for listener in self._listeners:
            listener(kind, 1, 0.01)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def _token_id(word: str) -> int:
    word = word.rstrip(":")
    return 1 + WORDS.index(word) if word in WORDS else 100 + abs(hash(word)) % 50_000


def _edited(rgb: bytes, source: SourceImage | None) -> bytes:
    """Blended with the source by its strength, or by its mask where that keeps it."""
    if source is None or (source.strength == 1 and source.mask is None):
        return rgb
    made, kept = (np.frombuffer(each, np.uint8).astype(np.float32) for each in (rgb, source.rgb))
    made = kept + source.strength * (made - kept)
    if source.mask is not None:
        weight = np.repeat(np.frombuffer(source.mask, np.uint8), 3) / 255
        made = kept + weight * (made - kept)
    return made.round().astype(np.uint8).tobytes()


def _rgb(word: str, seed: int, index: int, pixels: int) -> bytes:
    if word == "noise":
        return random.Random(seed).randbytes(3 * pixels)
    return bytes((seed % 256, 64 + index, 128)) * pixels
