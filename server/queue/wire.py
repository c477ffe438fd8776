"""What crosses the broker: versioned MessagePack of small frozen structs and of the engine's messages."""

from collections.abc import Mapping
from typing import Literal, TypeVar

import msgspec
import nats.errors

from engine.cost import DeviceSpeed
from engine.errors import (
    AdapterFailedError,
    AdaptersTooLargeError,
    AdapterUnavailableError,
    DeadlineExceededError,
    EngineError,
    GenerationError,
    VersionMismatchError,
    WorkerCrashedError,
)
from engine.messages import PreviewReady, StageTimes, StepDone
from engine.precision import Precision
from engine.request import EngineRequest, Priority
from server.queue import names

# Raise it with every change that an older process would misread; all processes of a fleet need the same.
VERSION = 3

ErrorKind = Literal[
    "deadline", "generation", "crashed", "version", "adapter", "adapter failed", "adapters too large"
]
_ERRORS: Mapping[ErrorKind, type[EngineError]] = {
    "deadline": DeadlineExceededError,
    "generation": GenerationError,
    "crashed": WorkerCrashedError,
    "version": VersionMismatchError,
    "adapter": AdapterUnavailableError,
    "adapter failed": AdapterFailedError,
    "adapters too large": AdaptersTooLargeError,
}


class VersionError(Exception):
    """A message of another version. `reply` is the subject of its results, "" if it has none."""

    def __init__(self, version: int, reply: str = "") -> None:
        super().__init__(
            f"a message has version {version}, this server reads {VERSION}: run one version of the server"
        )
        self.reply = reply


# Why something cannot be had from the broker, or not be read.
FAILURES = (nats.errors.Error, OSError, TimeoutError, msgspec.MsgspecError, VersionError)


class _Head(msgspec.Struct, frozen=True):
    """The fields that no version changes."""

    version: int
    reply: str = ""


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """The base of all."""

    version: int = VERSION


class Work(Message, frozen=True, kw_only=True):
    """A request on its way to a worker. Its results are published on subjects below `reply`.

    `submitted` and `deadline` are in seconds of the clock of the NATS servers. `checkpoint` is the
    fingerprint of the one that must run it. `is_again` says that a worker may have it already. The pixels of
    an edit are below `names.uploads`.
    """

    reply: str
    request: EngineRequest
    checkpoint: str
    submitted: float
    deadline: float | None = None
    is_again: bool = False

    def __post_init__(self) -> None:
        if not names.is_reply(self.reply):
            raise ValueError("`reply` is not a subject of results")


class Run(Message, frozen=True, kw_only=True):
    """A worker has begun a request, after `deaths` workers died with it; "" if it gave the request back."""

    worker: str
    deaths: int


class Part(Message, frozen=True, kw_only=True):
    """Bytes from `offset` on of a finished image, `width` x `height` x 3 bytes of RGB, row-major."""

    image_index: int
    seed: int
    width: int
    height: int
    offset: int
    data: bytes
    precision: Precision | None = None


class Done(Message, frozen=True, kw_only=True):
    """The last message about a request: the times of a success, or an error. `image` is the last image, if it
    is small."""

    times: StageTimes | None = None
    error: ErrorKind | None = None
    message: str = ""
    image: Part | None = None

    def exception(self) -> EngineError | None:
        return _ERRORS[self.error](self.message) if self.error else None

    @classmethod
    def failed(cls, error: EngineError) -> "Done":
        kinds = (kind for kind, type_ in _ERRORS.items() if isinstance(error, type_))
        return cls(error=next(kinds, "generation"), message=str(error))


class Progress(Message, frozen=True, kw_only=True):
    """May be lost."""

    step: StepDone | None = None
    preview: PreviewReady | None = None


class Promotion(Message, frozen=True, kw_only=True):
    """Adopt a deadline (seconds of the clock of the NATS servers) and a priority."""

    deadline: float | None
    priority: Priority


class WorkerNews(Message, frozen=True, kw_only=True):
    """Announced by a worker each second. `checkpoint` is the fingerprint of its own, `speeds` are of devices
    that take work, `held` are replies of its requests, `adapters` are the SHA-256 of the files that it can
    use. `is_leaving` in the last one."""

    id: str
    checkpoint: str
    speeds: tuple[DeviceSpeed, ...] = ()
    precision: Precision | None = None
    devices: dict[str, int] = {}
    held: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    is_leaving: bool = False


class FrontNews(Message, frozen=True, kw_only=True):
    """Announced by a front each second: predicted seconds of its requests in flight on the fastest device,
    `batch` by resolution ("1024x1024"). `checkpoint` is the fingerprint of the one that runs them.
    `is_leaving` in the last one."""

    id: str
    checkpoint: str
    interactive: float = 0.0
    batch: dict[str, float] = {}
    is_leaving: bool = False


T = TypeVar("T", bound=Message)
encode = msgspec.msgpack.Encoder().encode
_head = msgspec.msgpack.Decoder(_Head)


def decode(data: bytes, kind: type[T]) -> T:
    """Raises VersionError for a message of another version, and msgspec.MsgspecError for other content."""
    head = _head.decode(data)
    if head.version != VERSION:
        raise VersionError(head.version, head.reply)
    return msgspec.msgpack.decode(data, type=kind)
