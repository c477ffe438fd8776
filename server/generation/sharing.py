"""The interface of what the servers of a fleet share about requests."""

from typing import Protocol

from server.access.api_keys import Caller
from server.engine_port import Queue
from server.generation.idempotency import Fingerprint
from server.generation.transcript import Transcript


class Permit(Protocol):
    """The right to run a request. Call `finish` exactly once."""

    async def confirm(self) -> None:
        """Call it before the request is generated and before each image is sent: if this server was silent,
        another may have taken it over. Waits for its answer. Raises AnsweredError or ApiError 422."""

    def finish(self, transcript: Transcript | None) -> None:
        """Give it back, with the transcript that repeated requests get; None if there is none."""


class Sharing(Protocol):
    """Idempotency keys and concurrency limits that hold over all servers."""

    async def enter(
        self, request_id: str, caller: Caller, fingerprint: Fingerprint | None, deadline: float
    ) -> Permit | Transcript | None:
        """Wait until this request may run, or another server has answered it.

        Returns None if this server itself runs a request with this Idempotency-Key. `deadline` is in seconds
        of `time.monotonic()`. Raises ApiError 422, 429, 503 or 504.
        """


class SharedQueue(Queue, Sharing, Protocol):
    """The queue of a fleet, for the server."""
