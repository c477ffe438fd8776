"""Messages between the client and a worker: small frozen dataclasses. Torch-free."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from engine.cost import CostModel, TaskKind
from engine.errors import EngineError
from engine.precision import Precision
from engine.request import EngineRequest, Priority

UnitKind = Literal[TaskKind, "denoise"]


@dataclass(frozen=True, slots=True)
class Abort:
    """Stop this request in any phase; no answer follows."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Promote:
    """Set the priority of this request in any phase."""

    request_id: str
    priority: Priority


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Exit the worker process."""


@dataclass(frozen=True, slots=True)
class Ping:
    """Answer with Pong before the next unit of work."""


@dataclass(frozen=True, slots=True)
class Pong:
    """The step loop is alive."""


@dataclass(frozen=True, slots=True)
class StepDone:
    """Image `image_index` finished step `step` (1..num_steps) of those that run."""

    request_id: str
    image_index: int
    step: int
    num_steps: int


@dataclass(frozen=True, slots=True)
class PreviewReady:
    """A small preview of an image, `width` x `height` x 3 bytes of RGB, row-major."""

    request_id: str
    image_index: int
    preview_index: int
    width: int
    height: int
    rgb: bytes


@dataclass(frozen=True, slots=True)
class ImageDone:
    """A finished image, `width` x `height` x 3 bytes of RGB, row-major."""

    request_id: str
    image_index: int
    seed: int
    width: int
    height: int
    rgb: bytes
    precision: Precision | None = None


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Seconds in the queue, and seconds of device time by stage. A step of several images counts once.

    `encode` is of the prompt and the source image.
    """

    queue: float
    encode: float
    denoise: float
    decode: float


@dataclass(frozen=True, slots=True)
class RequestDone:
    """The last message of a request that succeeded."""

    request_id: str
    times: StageTimes


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """The last message of a request that failed."""

    request_id: str
    error: EngineError


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """The worker has loaded the model and measured its cost model."""

    cost_model: CostModel
    device_memory_bytes: int
    precision: Precision | None = None


@dataclass(frozen=True, slots=True)
class CostCorrected:
    """The cost model that replaces the previous one, corrected by observed work."""

    cost_model: CostModel


@dataclass(frozen=True, slots=True)
class WorkerFailed:
    """The worker cannot load, and exits. `is_permanent`: a restart would fail in the same way."""

    reason: str
    is_permanent: bool


@dataclass(frozen=True, slots=True)
class Notice:
    """A line for the log of the client's process. `level` is one of `logging`."""

    level: int
    text: str
    fields: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UnitStarted:
    """Sent before each unit of work: the requests in it, and its predicted duration in seconds.

    Kind "compile": between two units, compiled code is loaded or compared.
    """

    kind: UnitKind | Literal["compile"]
    request_ids: tuple[str, ...]
    expected_seconds: float


@dataclass(frozen=True, slots=True)
class UnitDone:
    """Sent after each unit of work: its duration in seconds and number of samples. Counters are since the
    worker's start."""

    kind: UnitKind
    batch_size: int
    seconds: float
    device_memory_bytes: int
    cache_hits: int
    cache_misses: int


# What a client's caller receives; a failed request raises instead.
RequestOutput = StepDone | PreviewReady | ImageDone | RequestDone
ToWorker = EngineRequest | Abort | Promote | Ping | Shutdown
FromWorker = (
    RequestOutput
    | RequestFailed
    | WorkerReady
    | WorkerFailed
    | CostCorrected
    | UnitStarted
    | UnitDone
    | Notice
    | Pong
)
