"""Names of streams, buckets and subjects on the broker."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from engine.request import Priority

PLAIN = re.compile(r"[A-Za-z0-9_-]+")
DAY = 86_400.0
DUPLICATE_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Stream:
    """A persistent stream. A `work` stream deletes a message once it is acknowledged. Messages are kept for
    `max_age` and equal `Nats-Msg-Id`s are stored once within `duplicate_window`, both in seconds.

    Above `max_messages`, messages are refused; above `max_per_subject`, the oldest of a subject are deleted.
    """

    name: str
    subjects: tuple[str, ...]
    retention: Literal["limits", "work"] = "limits"
    max_age: float = DAY
    duplicate_window: float = DUPLICATE_SECONDS
    max_messages: int | None = None
    max_per_subject: int | None = None


@dataclass(frozen=True, slots=True)
class Bucket:
    """A key-value bucket. `ttl` is the time that a value is kept after its last update, in seconds."""

    name: str
    ttl: float


WORK = Stream("WORK", ("work.>",), "work")
RESULTS = Stream("RESULTS", ("results.>",), max_age=600.0)
# Until the last attempt to deliver, which is made after 76 hours.
WEBHOOKS = Stream("WEBHOOKS", ("webhooks",), "work", max_age=5 * DAY)

SEATS = Bucket("seats", DAY)
CLAIMS = Bucket("claims", DAY)

STREAMS: Sequence[Stream] = (WORK, RESULTS, WEBHOOKS)
BUCKETS: Sequence[Bucket] = ()


def token(text: str) -> str:
    """One token of a subject or key for any text: itself if it has only letters, digits, `_` and `-`."""
    if PLAIN.fullmatch(text):
        return text
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", text)[:64]
    return f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def work(model_id: str, priority: Priority) -> str:
    """Requests for a model."""
    return f"work.{token(model_id)}.{priority}"


def consumer(model_id: str, priority: Priority) -> str:
    """The durable consumer of these requests, which all workers of the model share."""
    return f"{token(model_id)}-{priority}"


def results(front: str, submission: str) -> str:
    """All results of one submission of a front are on subjects below this."""
    return f"results.{front}.{submission}"


def done(reply: str) -> str:
    """The answer of the submission with these results."""
    return f"{reply}.done"


def run(reply: str) -> str:
    """Which worker runs the submission with these results."""
    return f"{reply}.run"


def part(reply: str, worker: str, image_index: int | str, offset: int | str) -> str:
    """A part of an image."""
    return f"{reply}.{worker}.{image_index}.{offset}"


def progress(reply: str) -> str:
    """Steps and previews of the submission with these results."""
    return f"progress.{reply}"


def control(reply: str) -> str:
    """Aborts (empty) and promotions of the submission with these results, to all workers."""
    return f"control.{reply}"


def gone(front: str) -> str:
    """Workers tell a front that they dropped its requests, because they took it for dead."""
    return f"gone.{front}"


def front_of(reply: str) -> str:
    """The id of the front with these results."""
    return reply.split(".")[1]


def news(model_id: str, kind: Literal["front", "worker", "*"], id_: str) -> str:
    """Announcements of a process."""
    return f"fleet.{token(model_id)}.{kind}.{id_}"
