"""What crosses the process boundary: small frozen dataclasses, nothing else. Torch-free."""

from dataclasses import dataclass
from typing import Literal

from engine.cost import CostModel
from engine.request import EngineRequest, Priority

UnitKind = Literal["encode", "denoise", "decode"]


@dataclass(frozen=True, slots=True)
class Abort:
    """Stop this request wherever it is; nothing is answered."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Promote:
    """Raise the priority of this request wherever it is."""

    request_id: str
    priority: Priority


@dataclass(frozen=True, slots=True)
class Shutdown:
    """End the worker."""


@dataclass(frozen=True, slots=True)
class Ping:
    """Answer with Pong before the next unit of work."""


@dataclass(frozen=True, slots=True)
class Pong:
    """The step loop is alive."""


@dataclass(frozen=True, slots=True)
class StepDone:
    """Image `image_index` finished step `step` (1..num_steps)."""

    request_id: str
    image_index: int
    step: int
    num_steps: int


@dataclass(frozen=True, slots=True)
class PreviewReady:
    """A small RGB picture (`width` x `height` x 3 bytes, row-major) of the image so far."""

    request_id: str
    image_index: int
    preview_index: int
    width: int
    height: int
    rgb: bytes


@dataclass(frozen=True, slots=True)
class ImageDone:
    """One finished image, `width` x `height` x 3 bytes of RGB, row-major."""

    request_id: str
    image_index: int
    seed: int
    width: int
    height: int
    rgb: bytes


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Seconds a request spent waiting and in each stage; its first to its last image."""

    queue: float
    encode: float
    denoise: float
    decode: float


@dataclass(frozen=True, slots=True)
class RequestDone:
    """The last message of a request that was answered in full."""

    request_id: str
    times: StageTimes


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """The last message of a request that was not. `code` names an error class of `engine.errors`."""

    request_id: str
    code: Literal["deadline_exceeded", "generation_failed", "worker_crashed"]
    message: str


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """The worker has loaded and warmed up."""

    cost_model: CostModel
    device_memory_bytes: int


@dataclass(frozen=True, slots=True)
class CostCorrected:
    """Work takes other than was predicted: from now on it is predicted so."""

    cost_model: CostModel


@dataclass(frozen=True, slots=True)
class WorkerFailed:
    """The worker could not load, and ends; `is_checkpoint_error` if trying again is of no use."""

    reason: str
    is_checkpoint_error: bool


@dataclass(frozen=True, slots=True)
class UnitStarted:
    """A sign of life before each unit of work: whose it is and how long it should take, in seconds."""

    kind: UnitKind
    request_ids: tuple[str, ...]
    expected_seconds: float


@dataclass(frozen=True, slots=True)
class UnitDone:
    """`seconds` it took, for `batch_size` samples; counters are since the worker's start."""

    kind: UnitKind
    batch_size: int
    seconds: float
    device_memory_bytes: int
    cache_hits: int
    cache_misses: int


RequestOutput = StepDone | PreviewReady | ImageDone | RequestDone
ToWorker = EngineRequest | Abort | Promote | Ping | Shutdown
FromWorker = (
    RequestOutput | RequestFailed | WorkerReady | WorkerFailed | CostCorrected | UnitStarted | UnitDone | Pong
)
