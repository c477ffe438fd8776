"""The door: what is let in, by predicted seconds of device time."""

import math
import time

from engine.messages import EngineRequest
from server.auth import Caller
from server.engine_port import Engine
from server.errors import ApiError


class Ticket:
    """One admitted request, until it is released."""

    def __init__(self, caller: Caller, request: EngineRequest, seconds: float) -> None:
        self.caller = caller
        self.request = request
        self.remaining_seconds = seconds
        self.is_with_engine = False
        self._seconds = seconds

    def change(self, request: EngineRequest, seconds: float) -> None:
        self.request = request
        self.remaining_seconds = self._seconds = seconds

    def begin(self) -> None:
        """From now on the engine's own backlog counts this request."""
        self.is_with_engine = True

    def step(self, image_index: int, step: int, num_steps: int) -> None:
        done = (image_index + step / num_steps) / len(self.request.seeds)
        self.remaining_seconds = min(self.remaining_seconds, self._seconds * (1 - done))


class Admission:
    """Counts seconds, not requests: ten small images may pass where one large one does not.

    Priority `batch` may fill only a part of the backlog, and does not count against `interactive`,
    which the scheduler serves first.
    """

    def __init__(self, engine: Engine, max_backlog_seconds: float, batch_share: float) -> None:
        self._engine = engine
        self._bounds = {"interactive": max_backlog_seconds, "batch": max_backlog_seconds * batch_share}
        self._tickets: set[Ticket] = set()

    def admit(self, request: EngineRequest, caller: Caller) -> Ticket:
        """Raises ApiError 429; `Retry-After` is when the same request would pass."""
        self._check_caller(caller)
        cost = self._engine.predict_seconds(request)
        ahead = self._ahead(request)
        if request.deadline is not None:
            _check_deadline(ahead, cost, request.deadline - time.monotonic())
        excess = ahead + cost - self._bounds[request.priority]
        if excess > 0 and ahead > 0:
            message = f"{ahead:.1f} seconds of work are waiting."
            raise ApiError(429, "queue_full", message, retry_after=math.ceil(min(excess, ahead)))
        ticket = Ticket(caller, request, cost)
        self._tickets.add(ticket)
        return ticket

    def renew(self, ticket: Ticket, request: EngineRequest) -> None:
        """The same request after its prompt was prepared: its place is kept, its deadline looked at again.
        Raises ApiError 429."""
        if request == ticket.request:
            return
        self._tickets.discard(ticket)
        cost = self._engine.predict_seconds(request)
        if request.deadline is not None:
            _check_deadline(self._ahead(request), cost, request.deadline - time.monotonic())
        ticket.change(request, cost)
        self._tickets.add(ticket)

    def release(self, ticket: Ticket) -> None:
        self._tickets.discard(ticket)

    def backlog_seconds(self) -> float:
        """All admitted, unfinished work; what the engine has not seen yet included."""
        unseen = sum(ticket.remaining_seconds for ticket in self._tickets if not ticket.is_with_engine)
        return self._engine.backlog_seconds() + unseen

    def _ahead(self, request: EngineRequest) -> float:
        if request.priority == "batch":
            return self.backlog_seconds()
        behind = sum(
            ticket.remaining_seconds for ticket in self._tickets if ticket.request.priority == "batch"
        )
        return max(self.backlog_seconds() - behind, 0.0)

    def _check_caller(self, caller: Caller) -> None:
        own = [ticket.remaining_seconds for ticket in self._tickets if ticket.caller.name == caller.name]
        if caller.max_concurrency is not None and len(own) >= caller.max_concurrency:
            message = f"This key has {len(own)} requests in flight, as many as it may."
            raise ApiError(429, "concurrency_limit", message, retry_after=math.ceil(min(own)))


def _check_deadline(ahead: float, cost: float, left: float) -> None:
    if ahead + cost > left:
        message = f"This needs {ahead + cost:.1f} seconds from now; its deadline leaves {max(left, 0):.1f}."
        # Where its own cost is beyond the deadline, waiting helps nobody.
        hopeless = cost > left
        after = None if hopeless else math.ceil(ahead + cost - left)
        raise ApiError(
            429, "deadline_unreachable", message, retry_after=after or 60, retry=False if hopeless else None
        )
