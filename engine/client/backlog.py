"""Predicted seconds of the requests in flight, by device, for admission control and routing. Torch-free."""

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from engine.client.in_flight import InFlightRequest
from engine.client.worker_supervisor import WorkerSupervisor
from engine.cost import DeviceSpeed
from engine.request import BATCH_SHARE, EngineRequest, Priority

# A prediction counts as proven for this long after the device's last unit of work.
_PROVEN_SECONDS = 60.0

Resolution = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Forecast:
    """Predicted seconds for a request on one device, assuming that no other request arrives.

    `own` is its cost. `ahead` is the work that runs before it: all interactive work, and for a `batch`
    request all batch work as well. `shared` is the batch work, by resolution, that shares the device with an
    interactive request. `is_proven` is False if the device has done no work lately that would have corrected
    its cost model.

    Interactive requests that arrive later do run before a `batch` request: docs/engine.md has the bound.
    """

    ahead: float
    own: float
    shared: Sequence[float] = ()
    is_proven: bool = True

    @property
    def total(self) -> float:
        """Upper bound of the seconds until the request is done."""
        return _stretched(self.ahead + self.own, self.shared)

    def wait_seconds(self, left: float) -> float:
        """Seconds after which `total` is at most `left`; infinite if `own` is greater."""
        if self.own > left:
            return math.inf
        if self.total > left and _stretched(self.own, self.shared) > left:  # batch work must be done too
            return self.ahead + sum(self.shared) + self.own - left
        return max(self.total - left, 0.0)


def _stretched(seconds: float, shared: Iterable[float]) -> float:
    """Seconds that interactive work takes while batch work of each resolution gets its share of the
    device."""
    return seconds + sum(min(batch, BATCH_SHARE * seconds) for batch in shared)


def _is_proven(worker: WorkerSupervisor) -> bool:
    return worker.last_unit_ended > time.monotonic() - _PROVEN_SECONDS


class DeviceLoads:
    """Predicted seconds of the requests in flight, by device. A request without a worker counts on the device
    where it would be done first."""

    def __init__(self, workers: Iterable[WorkerSupervisor], requests: Iterable[InFlightRequest]) -> None:
        """`workers` are those that take new requests, at least one."""
        self._interactive = dict.fromkeys(workers, 0.0)
        self._batch: dict[WorkerSupervisor, dict[Resolution, float]] = {
            worker: defaultdict(float) for worker in self._interactive
        }
        self._places: dict[InFlightRequest, WorkerSupervisor] = {}
        unassigned = []
        for request in requests:
            if request.worker is None:
                unassigned.append(request)
            elif request.worker in self._interactive:
                self._put(request, request.worker)
        for request in unassigned:
            self.place(request)

    def ahead(self, worker: WorkerSupervisor, priority: Priority) -> float:
        """Seconds of work that run before a new request of this priority."""
        batch = sum(self._batch[worker].values()) if priority == "batch" else 0.0
        return self._interactive[worker] + batch

    def shared(self, worker: WorkerSupervisor, priority: Priority) -> list[float]:
        """Seconds of batch work, by resolution, that share the device with a new request of this priority."""
        return list(self._batch[worker].values()) if priority == "interactive" else []

    def done_seconds(self, request: InFlightRequest) -> float:
        """Upper bound of the seconds until a request in flight is done; 0 if its device takes no new work."""
        worker = self._places.get(request)
        if worker is None:
            return 0.0
        priority = request.request.priority
        return _stretched(self.ahead(worker, priority), self.shared(worker, priority))

    def place(self, request: InFlightRequest) -> WorkerSupervisor:
        """Put the request on the device where it is done first; if equal, on the one with the least work."""
        before = self._places.pop(request, None)
        if before is not None:
            self._add(request, before, -1)
        priority = request.request.priority

        def order(worker: WorkerSupervisor) -> tuple[float, float]:
            own = request.seconds_left(worker.cost_model)
            return self.ahead(worker, priority) + own, self.ahead(worker, "batch")

        worker = min(self._interactive, key=order)
        self._put(request, worker)
        return worker

    def _put(self, request: InFlightRequest, worker: WorkerSupervisor) -> None:
        self._places[request] = worker
        self._add(request, worker, 1)

    def _add(self, request: InFlightRequest, worker: WorkerSupervisor, sign: int) -> None:
        seconds = sign * request.seconds_left(worker.cost_model)
        if request.request.priority == "interactive":
            self._interactive[worker] += seconds
        else:
            self._batch[worker][request.request.resolution] += seconds


class Backlog:
    """The only place that sums predicted seconds of requests in flight."""

    def __init__(self, workers: Sequence[WorkerSupervisor], in_flight: Mapping[str, InFlightRequest]) -> None:
        self._workers = workers
        self._in_flight = in_flight

    def loads(self, without: str | None = None) -> DeviceLoads:
        """Loads from all requests in flight except one."""
        requests = (request for name, request in self._in_flight.items() if name != without)
        return DeviceLoads(self._takers, requests)

    def forecast(self, request: EngineRequest) -> list[Forecast]:
        """One forecast for each device that takes new requests. A request in flight is not ahead of
        itself."""
        loads, new = self.loads(without=request.request_id), InFlightRequest(request)
        return [
            Forecast(
                ahead=loads.ahead(worker, request.priority),
                own=new.seconds_left(worker.cost_model),
                shared=loads.shared(worker, request.priority),
                is_proven=_is_proven(worker),
            )
            for worker in self._takers
        ]

    def speeds(self) -> list[DeviceSpeed]:
        """Of the devices that take new requests and have a cost model."""
        ready = [worker for worker in self._takers if worker.is_ready]
        return [DeviceSpeed(each.cost_model, _is_proven(each)) for each in ready if each.cost_model]

    def seconds(self, priority: Priority) -> float:
        """Seconds of work ahead of a new request of this priority, on the device with the least."""
        loads = self.loads()
        return min(loads.ahead(worker, priority) for worker in self._takers)

    def first_done_seconds(self, request_ids: Iterable[str]) -> float:
        """Upper bound of the seconds until the first of these requests is done; 0 if none is in flight."""
        loads = self.loads()
        known = [self._in_flight[name] for name in request_ids if name in self._in_flight]
        return min(map(loads.done_seconds, known), default=0.0)

    @property
    def _takers(self) -> Sequence[WorkerSupervisor]:
        """The workers that take new requests: those that are ready and not silent, else those that are ready,
        else all."""
        ready = [worker for worker in self._workers if worker.is_ready]
        return [worker for worker in ready if not worker.is_silent] or ready or self._workers
