"""Idempotent retries: requests with the same `Idempotency-Key` share one generation."""

import asyncio
import hashlib
import sys
import time
from dataclasses import dataclass

from server.generation.generation import Generation
from server.generation.transcript import Transcript
from server.schemas.errors import ApiError, RefusedError, invalid

MAX_KEY_CHARACTERS = 256
# Measured overhead of Python objects, beside the bytes and characters they hold.
ENTRY_BYTES = 4096
IMAGE_BYTES = 192
WARNING_BYTES = 768


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """An idempotency key of a caller, and the digest of the body that it was sent with."""

    caller: str
    key: str
    digest: bytes

    @property
    def scope(self) -> tuple[str, str]:
        """Keys of different callers are independent."""
        return self.caller, self.key

    @classmethod
    def of(cls, caller: str, key: str, body: bytes | bytearray, output_format: str) -> "Fingerprint":
        """Raises ApiError 400."""
        if not 0 < len(key) <= MAX_KEY_CHARACTERS:
            raise invalid(
                f"Idempotency-Key must have 1 to {MAX_KEY_CHARACTERS} characters.", "Idempotency-Key"
            )
        return cls(caller, key, hashlib.sha256(output_format.encode() + b"\0" + body).digest())


@dataclass(frozen=True, slots=True)
class _Running:
    fingerprint: Fingerprint
    generation: Generation


@dataclass(frozen=True, slots=True)
class _Kept:
    fingerprint: Fingerprint
    transcript: Transcript
    bytes: int
    expires: float


class IdempotencyCache:
    """Generations in flight, and the transcripts of finished ones, bounded in time and memory.

    The oldest are dropped first. A failed request is not kept, unless moderation refused it.
    """

    def __init__(self, seconds: float, max_bytes: int) -> None:
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._running: dict[tuple[str, str], _Running] = {}
        self._kept: dict[tuple[str, str], _Kept] = {}  # in the order they expire
        self._timer: asyncio.TimerHandle | None = None
        self.total_bytes = 0

    def find(self, fingerprint: Fingerprint) -> Generation | Transcript | None:
        """Raises ApiError 422 if the key was used with another body."""
        running, kept = self._running.get(fingerprint.scope), self._kept.get(fingerprint.scope)
        if running and not running.generation.is_abandoned:
            check_body(running.fingerprint.digest, fingerprint.digest)
            return running.generation
        if kept:
            check_body(kept.fingerprint.digest, fingerprint.digest)
            return kept.transcript
        return None

    def add(self, fingerprint: Fingerprint, generation: Generation) -> None:
        """Share a started generation while it runs, and keep its transcript afterwards."""
        entry = _Running(fingerprint, generation)
        self._running[fingerprint.scope] = entry
        generation.task.add_done_callback(lambda _: self._finished(entry))

    def _finished(self, entry: _Running) -> None:
        scope, generation = entry.fingerprint.scope, entry.generation
        if self._running.get(scope) is not entry:  # abandoned, and replaced by a retry
            return
        del self._running[scope]
        if not generation.task.cancelled() and is_final(generation.transcript):
            self._keep(entry.fingerprint, generation.transcript.kept())

    def _keep(self, fingerprint: Fingerprint, transcript: Transcript) -> None:
        held = _held_bytes(fingerprint, transcript)
        self._kept[fingerprint.scope] = _Kept(fingerprint, transcript, held, time.monotonic() + self._seconds)
        self.total_bytes += held
        while self.total_bytes > self._max_bytes:
            self._forget_oldest()
        self._watch()

    def _watch(self) -> None:
        """Set the timer for the oldest."""
        if self._kept and self._timer is None:
            oldest = next(iter(self._kept.values()))
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(oldest.expires - time.monotonic(), self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = time.monotonic()
        while self._kept and next(iter(self._kept.values())).expires <= now:
            self._forget_oldest()
        self._watch()

    def _forget_oldest(self) -> None:
        self.total_bytes -= self._kept.pop(next(iter(self._kept))).bytes


def check_body(first: bytes, now: bytes) -> None:
    """Compare the digests of two bodies that were sent with one key. Raises ApiError 422."""
    if first != now:
        message = "This Idempotency-Key was already used with another body."
        raise ApiError(422, "idempotency_key_reused", message, param="Idempotency-Key")


def is_final(transcript: Transcript) -> bool:
    """Whether repeated requests get it too."""
    return transcript.failure is None or isinstance(transcript.failure, RefusedError)


def _held_bytes(fingerprint: Fingerprint, transcript: Transcript) -> int:
    failure = transcript.failure.message if transcript.failure else ""
    texts = [fingerprint.key, transcript.revised_prompt or "", failure]
    texts += [text for fault in transcript.warnings for text in (fault.message, fault.path or "")]
    return (
        ENTRY_BYTES
        + sum(IMAGE_BYTES + len(image.data) for image in transcript.images)
        + WARNING_BYTES * len(transcript.warnings)
        + sum(map(sys.getsizeof, texts))
    )
