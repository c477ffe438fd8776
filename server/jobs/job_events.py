"""The events of jobs, stored so that a client can read them at any time."""

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import nats
from nats.js.api import RawStreamMsg
from nats.js.errors import APIError, NotFoundError

from server.queue.connection.broker import Broker
from server.queue.names import Stream
from server.responses.frames import Frame

STREAM = "EVENTS"
PROGRESS, TIMINGS, END = "progress", "timings", "end"
WRONG_LAST_SEQUENCE = (10071, 10164)
ONCE = {"Nats-Expected-Last-Subject-Sequence": "0"}


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """A frame. `file` is the name of its image, which belongs into `b64_json`. `id` rises within a job."""

    id: int
    kind: str
    fields: dict[str, Any]
    file: str | None
    is_last: bool


StoredEvents = AsyncIterator[StoredEvent | None]


class JobEvents:
    """The stream keeps the last progress of a job, and each other event once, whoever runs the job again."""

    def __init__(self, broker: Broker, ttl: float) -> None:
        self._broker = broker
        self.stream = Stream(STREAM, ("events.>",), max_age=ttl, max_per_subject=1)

    async def start(self) -> None:
        await self._broker.declare_stream(self.stream)

    async def add(self, job_id: str, name: str, frame: Frame, file: str | None = None) -> None:
        """`name` is that of the event within the job. `file` is the name of the frame's image, if that is
        stored."""
        fields = dict(frame.fields)
        if frame.image is not None and file is None:
            fields["b64_json"] = base64.b64encode(frame.image).decode()
        with contextlib.suppress(_AlreadyStored):
            await self._store(f"events.{job_id}.{name}", _encode(frame.kind, fields, file))

    async def progress(self, job_id: str, frame: Frame, share: float) -> None:
        """Progress may be lost. `share` is that of the completed steps of the job."""
        with contextlib.suppress(nats.errors.Error):
            data = _encode(frame.kind, frame.fields, None, share)
            await self._broker.client.publish(f"events.{job_id}.{PROGRESS}", data)

    async def share(self, job_id: str) -> float:
        """The completed share of the steps of a running job."""
        message = await self._last(job_id, PROGRESS)
        return 0.0 if message is None else float(json.loads(message.data or b"{}")["share"])

    async def end_id(self, job_id: str) -> int | None:
        """The id of the last event; None while more may follow."""
        message = await self._last(job_id, END)
        return None if message is None else message.seq

    async def delete(self, job_id: str) -> None:
        await self._broker.jetstream.purge_stream(STREAM, subject=f"events.{job_id}.>")

    @asynccontextmanager
    async def follow(
        self, job_id: str, idle_seconds: float
    ) -> AsyncIterator[AsyncIterator[StoredEvent | None]]:
        """All events from the first; None after each `idle_seconds` without one."""
        subscription = await self._broker.jetstream.subscribe(
            f"events.{job_id}.>", stream=STREAM, ordered_consumer=True
        )

        async def events() -> AsyncIterator[StoredEvent | None]:
            while True:
                try:
                    message = await subscription.next_msg(idle_seconds)
                except TimeoutError:
                    yield None
                else:
                    yield _decode(message.metadata.sequence.stream, message.subject, message.data)

        try:
            yield events()
        finally:
            with contextlib.suppress(nats.errors.Error):
                await asyncio.shield(subscription.unsubscribe())

    async def _last(self, job_id: str, name: str) -> RawStreamMsg | None:
        try:
            subject = f"events.{job_id}.{name}"
            return await self._broker.jetstream.get_last_msg(STREAM, subject, direct=True)
        except NotFoundError:
            return None

    async def _store(self, subject: str, data: bytes) -> None:
        try:
            await self._broker.store(subject, data, ONCE)
        except APIError as error:
            if error.err_code not in WRONG_LAST_SEQUENCE:
                raise
            raise _AlreadyStored from None


class _AlreadyStored(Exception):
    pass


def _encode(kind: str, fields: Mapping[str, Any], file: str | None, share: float | None = None) -> bytes:
    event = {"kind": kind, "fields": fields, "file": file, "share": share}
    return json.dumps({name: value for name, value in event.items() if value is not None}).encode()


def _decode(sequence: int, subject: str, data: bytes) -> StoredEvent:
    event = json.loads(data)
    is_last = subject.endswith(f".{END}")
    return StoredEvent(sequence, event["kind"], event["fields"], event.get("file"), is_last)
