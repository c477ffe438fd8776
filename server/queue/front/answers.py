"""Finished generations that servers of a fleet keep for repeated requests."""

import asyncio
import logging

from nats.js.errors import APIError, KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

from engine.messages import StageTimes
from server.generation.transcript import Event, ImageFile, Timings, Transcript
from server.queue.connection.broker import Broker
from server.queue.names import Bucket
from server.queue.wire import Message, decode, encode
from server.schemas.errors import RefusedError
from server.schemas.issue import Issue
from server.settings.config_error import ConfigError
from server.settings.http_settings import HttpSettings

PART_BYTES = 512 << 10
logger = logging.getLogger(__name__)


class _Answer(Message, frozen=True, kw_only=True):
    """A transcript without its image files: `images` are index, seed and bytes of each. `refused` and
    `categories` describe a refusal by moderation."""

    digest: bytes
    request_id: str
    seeds: tuple[int, ...]
    created: int
    prompt_tokens: int
    revised_prompt: str | None
    warnings: tuple[tuple[str, str | None, str], ...]
    images: tuple[tuple[int, int, int], ...]
    times: StageTimes | None
    image_seconds: float
    refused: str | None
    categories: tuple[str, ...]


class Answers:
    """Kept for `seconds`, at most `max_bytes` of all servers: the oldest are deleted first."""

    def __init__(self, broker: Broker, seconds: float, max_bytes: int) -> None:
        self._broker = broker
        self._bucket_config = Bucket("answers", seconds, max_bytes or 1)
        self._max_bytes = max_bytes

    @classmethod
    def of(cls, broker: Broker, settings: HttpSettings) -> "Answers":
        return cls(broker, settings.idempotency_seconds, settings.idempotency_bytes)

    async def start(self) -> None:
        """Call it once the broker is connected. Raises ConfigError."""
        try:
            self._bucket: KeyValue = await self._broker.declare(self._bucket_config)
        except APIError as error:
            raise ConfigError(f"--idempotency-bytes: {self._max_bytes}: {error.description}") from None

    async def put(self, key: str, digest: bytes, transcript: Transcript) -> None:
        """Store a finished transcript, unless there is one, or the broker has no room for it."""
        data = b"".join(image.data for image in transcript.images)
        if len(data) > self._max_bytes:
            return
        try:
            for part, start in enumerate(range(0, len(data), PART_BYTES)):
                name = _part(key, transcript.request_id, part)
                await self._bucket.put(name, data[start : start + PART_BYTES])
            await self._put_first(key, encode(_answer(digest, transcript)))
        except APIError as error:
            logger.warning("a response is not kept for repeated requests: %s", error.description)

    async def _put_first(self, key: str, answer: bytes) -> None:
        try:
            await self._bucket.create(key, answer)
        except KeyWrongLastSequenceError:
            if await self.get(key) is None:  # the images of the first are deleted
                await self._bucket.put(key, answer)

    async def get(self, key: str) -> tuple[bytes, Transcript] | None:
        """The digest of the request's body, and the transcript."""
        try:
            answer = decode((await self._bucket.get(key)).value or b"", _Answer)
            size = sum(length for _, _, length in answer.images)
            names = (_part(key, answer.request_id, part) for part in range(-(-size // PART_BYTES)))
            parts = await asyncio.gather(*map(self._bucket.get, names))
            data = b"".join(entry.value or b"" for entry in parts)
        except KeyNotFoundError:
            return None
        return answer.digest, _transcript(answer, data)


def _part(key: str, request_id: str, part: int) -> str:
    """The key of a part of the images."""
    return f"{key}.{request_id}.{part}"


def _answer(digest: bytes, transcript: Transcript) -> _Answer:
    timings = next((event for event in transcript.events if isinstance(event, Timings)), None)
    refusal = transcript.failure if isinstance(transcript.failure, RefusedError) else None
    return _Answer(
        digest=digest,
        request_id=transcript.request_id,
        seeds=transcript.seeds,
        created=transcript.created,
        prompt_tokens=transcript.prompt_tokens,
        revised_prompt=transcript.revised_prompt,
        warnings=tuple((each.code, each.path, each.message) for each in transcript.warnings),
        images=tuple((image.image_index, image.seed, len(image.data)) for image in transcript.images),
        times=timings.times if timings else None,
        image_seconds=timings.image if timings else 0.0,
        refused=refusal.subject if refusal else None,
        categories=tuple(refusal.categories) if refusal else (),
    )


def _transcript(answer: _Answer, data: bytes) -> Transcript:
    events: list[Event] = []
    for index, seed, length in answer.images:
        events.append(ImageFile(index, seed, data[:length]))
        data = data[length:]
    if answer.times is not None:
        events.append(Timings(answer.times, answer.image_seconds))
    return Transcript(
        request_id=answer.request_id,
        seeds=answer.seeds,
        created=answer.created,
        prompt_tokens=answer.prompt_tokens,
        revised_prompt=answer.revised_prompt,
        warnings=tuple(
            Issue(code=code, path=path, message=message) for code, path, message in answer.warnings
        ),
        events=events,
        failure=RefusedError(answer.refused, answer.categories) if answer.refused else None,
        is_prepared=True,
        is_done=True,
    )
