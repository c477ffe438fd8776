"""Admission control by predicted seconds of device time."""

import math
import time
from dataclasses import dataclass

from engine.client.backlog import Forecast
from engine.request import EngineRequest
from server.access.api_keys import Caller
from server.engine_port import Engine, InFlight
from server.schemas.errors import ApiError

# Upper bound of `Retry-After`, in seconds; also sent if no wait would help.
MAX_RETRY_AFTER = 60


@dataclass(frozen=True, slots=True)
class _Outlook:
    """A request on one device. `bound` limits the backlog with the request in it; `left` is the time to the
    request's deadline. All in seconds."""

    forecast: Forecast
    bound: float
    left: float

    @property
    def total(self) -> float:
        return self.forecast.total

    @property
    def wait(self) -> float:
        """Seconds until the request is admissible if nothing else arrives; infinite if it costs more than
        its deadline leaves."""
        forecast = self.forecast
        if forecast.ahead == 0 and not forecast.is_proven:
            return 0.0  # only measured work corrects a prediction that is too high
        excess = forecast.ahead + forecast.own - self.bound
        return max(min(excess, forecast.ahead), forecast.wait_seconds(self.left), 0.0)

    def refusal(self) -> ApiError:
        if self.total > self.left:
            left = max(self.left, 0.0)
            message = f"This request needs {self.total:.1f} seconds; its deadline is in {left:.1f} seconds."
            retry = False if self.wait == math.inf else None
            return _refusal("deadline_unreachable", message, self.wait, retry)
        message = f"The queue is full: {self.forecast.ahead:.1f} seconds of work are waiting."
        return _refusal("queue_full", message, self.wait)


class Admission:
    """Bounds the predicted backlog of each device, in seconds, and the requests in flight of each key.

    Priority `batch` is limited to a share of the backlog and does not count against `interactive`, which the
    scheduler serves first. The engine makes all predictions.
    """

    def __init__(self, engine: Engine, max_backlog_seconds: float, batch_share: float) -> None:
        self._engine = engine
        self._bounds = {"interactive": max_backlog_seconds, "batch": max_backlog_seconds * batch_share}
        self._slots: dict[AdmissionSlot, None] = {}  # in the order of admission

    def admit(self, request: EngineRequest, caller: Caller, deadline: float | None = None) -> "AdmissionSlot":
        """Reserve device time. Raises ApiError 429.

        After `Retry-After` seconds the same request is admitted if nothing else arrives.
        """
        outlook = self._outlook(request, deadline, self._bounds[request.priority])
        self._check_caller(caller, outlook.wait)
        if outlook.wait > 0:
            raise outlook.refusal()
        slot = AdmissionSlot(self, caller, self._engine.reserve(request, deadline))
        self._slots[slot] = None
        return slot

    def update(self, request: EngineRequest, deadline: float | None) -> None:
        """Replace the reserved request of the same id; its place is kept. Raises ApiError 429 if it cannot
        meet its deadline."""
        outlook = self._outlook(request, deadline, bound=math.inf)
        if outlook.wait > 0:
            raise outlook.refusal()
        self._engine.reserve(request)

    def renew(self, slot: "AdmissionSlot") -> InFlight:
        """Reserve a request again that the engine has ended."""
        return self._engine.reserve(slot.request, slot.in_flight.deadline)

    def release(self, slot: "AdmissionSlot") -> None:
        self._slots.pop(slot, None)
        self._engine.release(slot.request.request_id)

    def position(self, slot: "AdmissionSlot") -> int:
        """1 for the next of the requests that have not begun; 0 for one that has."""
        before = (slot.request.priority, "interactive")
        waiting = [
            each for each in self._slots if each.request.priority in before and not each.in_flight.has_begun
        ]
        return waiting.index(slot) + 1 if slot in waiting else 0

    def _outlook(self, request: EngineRequest, deadline: float | None, bound: float) -> _Outlook:
        """On the device that can admit the request first."""
        left = math.inf if deadline is None else deadline - time.monotonic()
        outlooks = (_Outlook(forecast, bound, left) for forecast in self._engine.forecast(request))
        return min(outlooks, key=lambda outlook: (outlook.wait, outlook.total))

    def _check_caller(self, caller: Caller, wait: float) -> None:
        own = [slot.request.request_id for slot in self._slots if slot.caller.name == caller.name]
        if caller.max_concurrency is not None and len(own) >= caller.max_concurrency:
            wait = max(self._engine.first_done_seconds(own), wait)
            raise concurrency_refusal(len(own), caller.max_concurrency, wait)


def concurrency_refusal(in_flight: int, limit: int, wait: float) -> ApiError:
    """For a key that has reached its limit; `wait` is in seconds."""
    message = f"This key has {in_flight} requests in flight; its limit is {limit}."
    return _refusal("concurrency_limit", message, wait)


def _refusal(code: str, message: str, wait: float, retry: bool | None = None) -> ApiError:
    return ApiError(429, code, message, retry_after=math.ceil(min(wait, MAX_RETRY_AFTER)), retry=retry)


@dataclass(eq=False, slots=True)
class AdmissionSlot:
    """An admitted request, until it is released."""

    admission: Admission
    caller: Caller
    in_flight: InFlight

    @property
    def request(self) -> EngineRequest:
        return self.in_flight.request

    @property
    def position(self) -> int:
        """Among the requests of this process that have not begun; 0 once it has."""
        return self.admission.position(self)

    def update(self, request: EngineRequest) -> None:
        """Raises ApiError 429 if the changed request cannot meet its deadline."""
        if request != self.request:
            self.admission.update(request, self.in_flight.deadline)

    def renew(self) -> None:
        """The request is to be generated again."""
        self.in_flight = self.admission.renew(self)

    def release(self) -> None:
        self.admission.release(self)
