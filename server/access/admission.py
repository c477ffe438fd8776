"""Admission control by predicted seconds of device time."""

import math
import time
from dataclasses import dataclass

from engine.request import EngineRequest
from server.access.api_keys import Caller
from server.engine_port import Engine, Forecast, InFlight
from server.schemas.errors import ApiError

# The longest `Retry-After`, which also answers a request that no waiting helps.
MAX_RETRY_AFTER = 60


@dataclass(eq=False, slots=True)
class AdmissionSlot:
    """One admitted request, until it is released."""

    caller: Caller
    in_flight: InFlight

    @property
    def request(self) -> EngineRequest:
        return self.in_flight.request


@dataclass(frozen=True, slots=True)
class _Outlook:
    """A request on one device: it may wait behind `bound` seconds of work with its own, and has `left`."""

    forecast: Forecast
    bound: float
    left: float

    @property
    def total(self) -> float:
        return self.forecast.ahead + self.forecast.own

    @property
    def wait(self) -> float:
        """Seconds until it passes if nothing else arrives; infinite if its deadline is below its own cost."""
        if self.forecast.ahead == 0 and not self.forecast.is_proven:
            return 0.0  # refusals alone would never show that the prediction is too high
        if self.forecast.own > self.left:
            return math.inf
        return max(min(self.total - self.bound, self.forecast.ahead), self.total - self.left, 0.0)

    def refusal(self) -> ApiError:
        if self.total > self.left:
            left = max(self.left, 0.0)
            message = f"This needs {self.total:.1f} seconds from now; its deadline leaves {left:.1f}."
            retry = False if self.wait == math.inf else None
            return _refusal("deadline_unreachable", message, self.wait, retry)
        return _refusal("queue_full", f"{self.forecast.ahead:.1f} seconds of work are waiting.", self.wait)


class Admission:
    """Counts seconds, not requests: ten small images may pass where one large one does not.

    Priority `batch` may fill only a part of the backlog, and does not count against `interactive`, which the
    scheduler serves first. The engine predicts; nothing is added up here.
    """

    def __init__(self, engine: Engine, max_backlog_seconds: float, batch_share: float) -> None:
        self._engine = engine
        self._bounds = {"interactive": max_backlog_seconds, "batch": max_backlog_seconds * batch_share}
        self._slots: set[AdmissionSlot] = set()

    def admit(self, request: EngineRequest, caller: Caller) -> AdmissionSlot:
        """Raises ApiError 429; after `Retry-After` the same request passes if nothing else arrives."""
        outlook = self._outlook(request, self._bounds[request.priority])
        self._check_caller(caller, outlook.wait)
        if outlook.wait > 0:
            raise outlook.refusal()
        slot = AdmissionSlot(caller, self._engine.reserve(request))
        self._slots.add(slot)
        return slot

    def renew(self, slot: AdmissionSlot, request: EngineRequest) -> None:
        """Change an admitted request, of the same id: it keeps its place, its deadline is checked again.
        Raises ApiError 429."""
        if request == slot.request:
            return
        outlook = self._outlook(request, bound=math.inf)
        if outlook.wait > 0:
            raise outlook.refusal()
        self._engine.reserve(request)

    def release(self, slot: AdmissionSlot) -> None:
        self._slots.discard(slot)
        self._engine.release(slot.request.request_id)

    def _outlook(self, request: EngineRequest, bound: float) -> _Outlook:
        """On the device where the request passes first."""
        left = math.inf if request.deadline is None else request.deadline - time.monotonic()
        outlooks = (_Outlook(forecast, bound, left) for forecast in self._engine.forecast(request))
        return min(outlooks, key=lambda outlook: (outlook.wait, outlook.total))

    def _check_caller(self, caller: Caller, wait: float) -> None:
        own = [slot.request.request_id for slot in self._slots if slot.caller.name == caller.name]
        if caller.max_concurrency is not None and len(own) >= caller.max_concurrency:
            message = f"This key has {len(own)} requests in flight; its limit is {caller.max_concurrency}."
            raise _refusal("concurrency_limit", message, max(self._engine.first_done_seconds(own), wait))


def _refusal(code: str, message: str, wait: float, retry: bool | None = None) -> ApiError:
    return ApiError(429, code, message, retry_after=math.ceil(min(wait, MAX_RETRY_AFTER)), retry=retry)
