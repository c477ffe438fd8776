"""Answers kept by `Idempotency-Key`: a retry joins the request in flight, or repeats its answer."""

import asyncio
import hashlib
from dataclasses import dataclass

from server.errors import ApiError, RefusedError, invalid
from server.generation import Generation

MAX_KEY_CHARACTERS = 256
ENTRY_BYTES = 8192  # what an answer takes beside its files


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Whose key, and a digest of what it was first sent with."""

    caller: str
    key: str
    digest: bytes

    @property
    def place(self) -> tuple[str, str]:
        return self.caller, self.key

    @classmethod
    def of(cls, caller: str, key: str, body: bytes | bytearray, output_format: str) -> "Fingerprint":
        if not 0 < len(key) <= MAX_KEY_CHARACTERS:
            raise invalid(f"Idempotency-Key has 1 to {MAX_KEY_CHARACTERS} characters.", "Idempotency-Key")
        return cls(caller, key, hashlib.sha256(output_format.encode() + b"\0" + body).digest())


@dataclass(slots=True)
class _Entry:
    fingerprint: Fingerprint
    generation: Generation
    timer: asyncio.TimerHandle | None = None
    bytes: int = 0


class KeptAnswers:
    """Bounded in time and memory; the oldest go first. A request that failed is forgotten at once, but for
    one that moderation refused."""

    def __init__(self, seconds: float, max_bytes: int) -> None:
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._entries: dict[tuple[str, str], _Entry] = {}
        self.total_bytes = 0

    def find(self, fingerprint: Fingerprint) -> Generation | None:
        """Raises ApiError 422 if the key was used for another body."""
        entry = self._entries.get(fingerprint.place)
        if entry is None or entry.generation.is_abandoned:
            return None
        if entry.fingerprint != fingerprint:
            message = "This Idempotency-Key was used with another body."
            raise ApiError(422, "idempotency_key_reused", message, param="Idempotency-Key")
        return entry.generation

    def keep(self, fingerprint: Fingerprint, generation: Generation) -> None:
        entry = _Entry(fingerprint, generation)
        self._entries[fingerprint.place] = entry
        generation.task.add_done_callback(lambda task: self._finished(entry, task))

    def _finished(self, entry: _Entry, task: "asyncio.Task[None]") -> None:
        if task.cancelled() or not _is_final(task.exception()):
            self._forget(entry)
            return
        entry.timer = asyncio.get_running_loop().call_later(self._seconds, self._forget, entry)
        entry.bytes = entry.generation.total_bytes + ENTRY_BYTES
        self.total_bytes += entry.bytes
        for oldest in [other for other in self._entries.values() if other.timer]:
            if self.total_bytes <= self._max_bytes:
                break
            self._forget(oldest)

    def _forget(self, entry: _Entry) -> None:
        if entry.timer:
            entry.timer.cancel()
        self.total_bytes -= entry.bytes
        entry.bytes = 0
        if self._entries.get(entry.fingerprint.place) is entry:
            del self._entries[entry.fingerprint.place]


def _is_final(error: BaseException | None) -> bool:
    return error is None or isinstance(error, RefusedError)
