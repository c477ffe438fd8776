"""Streams, buckets and subjects on the broker."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, KeyValueConfig, RetentionPolicy, StreamConfig
from nats.js.errors import APIError
from nats.js.kv import KeyValue

from engine.request import Priority

PLAIN = re.compile(r"[A-Za-z0-9_-]{1,64}")
DAY = 86_400.0
REPLY = re.compile(r"results\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
NAME_IN_USE = 10058  # a stream with another configuration has this name
DUPLICATE_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Stream:
    """A persistent stream. A `work` stream deletes a message once it is acknowledged. Messages are kept for
    `max_age` and equal `Nats-Msg-Id`s are stored once within `duplicate_window`, both in seconds.

    Above `max_messages`, messages are refused; above `max_per_subject`, the oldest of a subject are deleted.
    If `can_expire`, a message with the header `Nats-TTL` is deleted after so many seconds.
    """

    name: str
    subjects: tuple[str, ...]
    retention: Literal["limits", "work"] = "limits"
    max_age: float = DAY
    duplicate_window: float = DUPLICATE_SECONDS
    max_messages: int | None = None
    max_per_subject: int | None = None
    can_expire: bool = False

    async def declare(self, jetstream: JetStreamContext, replicas: int) -> None:
        """Create or update it."""
        try:
            await jetstream.add_stream(self._config(replicas))
        except APIError as error:
            if error.err_code != NAME_IN_USE:
                raise
            await jetstream.update_stream(self._config(replicas))

    def _config(self, replicas: int) -> StreamConfig:
        return StreamConfig(
            name=self.name,
            subjects=list(self.subjects),
            retention=RetentionPolicy.WORK_QUEUE if self.retention == "work" else RetentionPolicy.LIMITS,
            max_age=self.max_age,
            duplicate_window=min(self.duplicate_window, self.max_age),
            max_msgs=self.max_messages,
            max_msgs_per_subject=self.max_per_subject or -1,
            discard=DiscardPolicy.NEW if self.max_messages else DiscardPolicy.OLD,
            num_replicas=replicas,
            allow_direct=True,
            allow_msg_ttl=self.can_expire or None,
        )


@dataclass(frozen=True, slots=True)
class Bucket:
    """A key-value bucket. `ttl` is the time that a value is kept after its last update, in seconds; 0:
    without end. Above `max_bytes`, the oldest values are deleted."""

    name: str
    ttl: float
    max_bytes: int | None = None

    async def declare(self, jetstream: JetStreamContext, replicas: int) -> KeyValue:
        """Create or update it, and open it."""
        config = KeyValueConfig(self.name, history=1, ttl=self.ttl, replicas=replicas, direct=True)
        try:
            bucket = await jetstream.create_key_value(config)
        except APIError as error:
            if error.err_code != NAME_IN_USE:
                raise
            bucket = await jetstream.key_value(self.name)
        current = (await bucket.status()).stream_info.config
        if current != (wanted := self._updated(current)):
            await jetstream.update_stream(wanted)
        return bucket

    def _updated(self, stream: StreamConfig) -> StreamConfig:
        return stream.evolve(
            max_age=self.ttl,
            duplicate_window=min(self.ttl or DUPLICATE_SECONDS, DUPLICATE_SECONDS),
            max_bytes=self.max_bytes or -1,
            discard=DiscardPolicy.OLD if self.max_bytes else DiscardPolicy.NEW,
        )


WORK = Stream("WORK", ("work.>",), "work")
RESULTS = Stream("RESULTS", ("results.>",), max_age=600.0)
# Until the last attempt to deliver, which is made after 76 hours.
WEBHOOKS = Stream("WEBHOOKS", ("webhooks",), "work", max_age=5 * DAY)

SEATS = Bucket("seats", DAY)
CLAIMS = Bucket("claims", DAY)

STREAMS: Sequence[Stream] = (WORK, RESULTS, WEBHOOKS)


def token(text: str) -> str:
    """One token of a subject or key for any text: itself if it is at most 64 letters, digits, `_` and `-`."""
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


def is_reply(subject: str) -> bool:
    """Whether results can be published below this subject."""
    return REPLY.fullmatch(subject) is not None


def front_of(reply: str) -> str:
    """The id of the front with these results."""
    return reply.split(".")[1]


def news(model_id: str, kind: Literal["front", "worker", "*"], id_: str) -> str:
    """Announcements of a process."""
    return f"fleet.{token(model_id)}.{kind}.{id_}"
