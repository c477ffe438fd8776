"""A fake model runner on a simulated clock, and an engine core that uses it."""

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any, cast
from zlib import crc32

from engine.compilation.compilation import Compilation
from engine.cost import CostModel, LinearCost
from engine.messages import FromWorker
from engine.precision import Precision
from engine.request import EngineRequest, Priority, SamplingParams
from engine.runner.request_state import Conditioning, Preview, RequestState, SampleState
from engine.scheduling.batch_limits import BatchLimits
from engine.scheduling.scheduler import Scheduler
from engine.worker.core import EngineCore

if TYPE_CHECKING:
    from engine.runner.sampling import EncodedSource

# A pass takes 2 ms and 0.1 ms per token; encoding and decoding take 1 ms per token, encoding an image 0.5 ms.
COST = CostModel(
    pass_=LinearCost(base=0.002, per_unit=0.0001),
    encode=LinearCost(base=0.0, per_unit=0.001),
    decode=LinearCost(base=0.0, per_unit=0.001),
    pixels_per_token=16,
    max_batch_size=8,
    max_batch_tokens=10_000,
    encode_image=LinearCost(base=0.0, per_unit=0.0005),
)
PROMPT_TOKENS = 10


def request(
    request_id: str,
    size: tuple[int, int] = (64, 64),
    steps: int = 4,
    images: int = 1,
    submitted: float = 0.0,
    priority: Priority = "interactive",
    prompt_tokens: int = PROMPT_TOKENS,
    **fields: Any,
) -> EngineRequest:
    """A request with a prompt unlike others', in which every step is guided."""
    return EngineRequest(
        request_id,
        (crc32(request_id.encode()),) * prompt_tokens,
        *size,
        seeds=tuple(range(images)),
        sampling=SamplingParams((2.0,) * steps, mu=0.0, std=1.5),
        submitted=submitted,
        priority=priority,
        **fields,
    )


class OutOfMemoryError(Exception):
    pass


@dataclass
class FakeRunner:
    """Takes the time that COST predicts; encodes and decodes can be paused after each millisecond.

    `encodes`, `sources`, `steps` and `decodes` are the batches that have begun (steps: that succeeded), as
    request ids. The callbacks may raise. The prompt of a request `NAME:...` is cached if NAME is in `cached`.
    """

    cost: CostModel = COST
    now: float = 0.0
    steps: list[list[str]] = field(default_factory=list)
    encodes: list[list[str]] = field(default_factory=list)
    sources: list[list[str]] = field(default_factory=list)
    decodes: list[list[str]] = field(default_factory=list)
    before_encode: Callable[[Sequence[EngineRequest]], None] = lambda requests: None
    before_decode: Callable[[Sequence[SampleState]], None] = lambda samples: None
    before_step: Callable[[list[SampleState]], None] = lambda samples: None
    before_preview: Callable[[SampleState], None] = lambda sample: None
    cached: set[str] = field(default_factory=set)
    nan: list[SampleState] = field(default_factory=list)
    precision: Precision | None = None
    fetches: bool = False
    cache_hits: int = 0
    cache_misses: int = 0

    @property
    def device(self) -> "FakeRunner":
        return self

    def clock(self) -> float:
        return self.now

    def is_cached(self, request: EngineRequest) -> bool:
        return request.request_id.partition(":")[0] in self.cached

    def encode(self, requests: Sequence[EngineRequest]) -> Generator[None, None, list[Conditioning]]:
        self.encodes.append([request.request_id for request in requests])
        self.before_encode(requests)
        missing = {request.token_ids for request in requests if not self.is_cached(request)}
        self.cache_hits += len(requests) - len(missing)
        self.cache_misses += len(missing)
        if missing:
            yield from self._work(self.cost.encode.seconds([len(prompt) for prompt in missing]))
        return [Conditioning(*[cast(Any, None)] * 4)] * len(requests)

    def encode_sources(
        self, requests: Sequence[EngineRequest]
    ) -> Generator[None, None, list["EncodedSource"]]:
        self.sources.append([request.request_id for request in requests])
        self.before_encode(requests)
        lengths = [self.cost.image_tokens(*request.resolution) for request in requests]
        yield from self._work(self.cost.encode_image.seconds(lengths))
        return [cast(Any, "source")] * len(requests)

    def new_sample(self, state: RequestState, image_index: int) -> SampleState:
        return SampleState(state, image_index, latents=cast(Any, None))

    def denoise_step(self, samples: list[SampleState]) -> None:
        self.now += step_seconds(samples, self.cost)
        self.before_step(samples)
        self.steps.append([sample.request.request_id for sample in samples])
        for sample in samples:
            sample.step_index += 1

    def decode(
        self, samples: Sequence[SampleState]
    ) -> Generator[None, None, list[bytes | FloatingPointError]]:
        self.decodes.append([sample.request.request_id for sample in samples])
        self.before_decode(samples)
        lengths = [self.cost.image_tokens(*sample.request.resolution) for sample in samples]
        yield from self._work(self.cost.decode.seconds(lengths))
        return [
            FloatingPointError("NaN") if sample in self.nan else content(sample.request) for sample in samples
        ]

    def preview(self, sample: SampleState) -> Preview:
        self.before_preview(sample)
        return Preview(1, 1, b"rgb")

    def is_fetching(self) -> bool:
        return self.fetches

    def synchronize(self) -> None:
        pass

    def peak_memory_bytes(self) -> int:
        return 0

    def release_memory(self) -> None:
        pass

    def is_out_of_memory(self, error: Exception) -> bool:
        return isinstance(error, OutOfMemoryError)

    def is_fatal(self, error: Exception) -> bool:
        return isinstance(error, SystemError)

    def _work(self, seconds: float) -> Generator[None, None, None]:
        for _ in range(round(seconds * 1000)):
            self.now += 0.001
            yield


def content(request: EngineRequest) -> bytes:
    """The pixels of its images: its id, and the digest of its source, if any."""
    source = request.source
    pixels = source and source.rgb + (source.mask or b"")
    return request.request_id.encode() + (sha256(pixels).digest() if pixels else b"")


def step_seconds(samples: Sequence[SampleState], cost: CostModel = COST) -> float:
    tokens = cost.image_tokens(*samples[0].request.resolution)
    return cost.step_seconds(tokens, [len(sample.request.token_ids) for sample in samples], len(samples))


class Engine:
    """A core on a fake runner. `sent` are all messages that it has emitted."""

    def __init__(
        self,
        max_batch_size: int = 8,
        max_batch_tokens: int = 10_000,
        max_running: int = 64,
        cost: CostModel = COST,
        actual: CostModel = COST,
        compiling: Callable[["Engine"], Compilation] | None = None,
    ) -> None:
        """`cost` is the scheduler's initial cost model; the runner takes the time that `actual` predicts."""
        self.runner = FakeRunner(actual)
        self.sent: list[FromWorker] = []
        cost = replace(cost, max_batch_size=max_batch_size, max_batch_tokens=max_batch_tokens)
        self.limits = BatchLimits(cost)
        self.scheduler = Scheduler(cost, self.limits, max_running)
        compilation = compiling(self) if compiling else None
        self.core = EngineCore(
            self.runner, self.scheduler, self.sent.append, self.runner.clock, compilation=compilation
        )

    def add(self, *requests: EngineRequest) -> None:
        for each in requests:
            self.core.add(each)

    def step(self) -> list[FromWorker]:
        """Run one unit of work, and return the messages that it emitted."""
        before = len(self.sent)
        self.core.step()
        return self.sent[before:]

    def run(self) -> None:
        """Run until no work is left."""
        while self.core.has_work:
            assert self.step(), "there is work, and nothing ran"

    def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            assert self.step(), "no work is left"

    def of(self, kind: type[Any], request_id: str | None = None) -> list[Any]:
        """Return the messages of a type, for one request or all."""
        return [
            message
            for message in self.sent
            if isinstance(message, kind) and request_id in (None, getattr(message, "request_id", None))
        ]

    def ids(self, kind: type[Any]) -> list[str]:
        return [message.request_id for message in self.of(kind)]


def joined(batches: Iterable[list[str]], request_id: str) -> list[list[str]]:
    """Return the batches that a request was in."""
    return [batch for batch in batches if request_id in batch]
