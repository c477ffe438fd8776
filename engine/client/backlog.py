"""Predicted seconds of the work in flight, by device: admission and routing go by them. Torch-free."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from engine.client.in_flight import InFlightRequest
from engine.client.worker_supervisor import WorkerSupervisor
from engine.request import EngineRequest, Priority

# A device without work for longer may have become faster or slower than its cost model says.
_PROVEN_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a request would meet on one device, in seconds: the work `ahead` of it, and its `own`.

    `is_proven` is False where the device has had no work lately to correct its predictions by.
    """

    ahead: float
    own: float
    is_proven: bool


class DeviceLoads:
    """The requests in flight by device. One that no worker has counts where it would be done first."""

    def __init__(self, workers: Iterable[WorkerSupervisor], requests: Iterable[InFlightRequest]) -> None:
        """`workers` are those that take new work, at least one."""
        self._seconds: dict[WorkerSupervisor, dict[Priority, float]] = {
            worker: {"interactive": 0.0, "batch": 0.0} for worker in workers
        }
        self._places: dict[InFlightRequest, WorkerSupervisor] = {}
        unassigned = []
        for request in requests:
            if request.worker is None:
                unassigned.append(request)
            elif request.worker in self._seconds:
                self._put(request, request.worker)
        for request in unassigned:
            self.place(request)

    def ahead(self, worker: WorkerSupervisor, priority: Priority) -> float:
        """Seconds of work that a new request of this priority waits for: `interactive` is served first."""
        seconds = self._seconds[worker]
        return seconds["interactive"] + (seconds["batch"] if priority == "batch" else 0.0)

    def done_seconds(self, request: InFlightRequest) -> float:
        """Until the request is done, at the latest; 0 if its device takes no new work."""
        worker = self._places.get(request)
        return 0.0 if worker is None else self.ahead(worker, request.request.priority)

    def place(self, request: InFlightRequest) -> WorkerSupervisor:
        """Put the request where it is done first; of equals, on the device with the least work."""
        before = self._places.pop(request, None)
        if before is not None:
            self._add(request, before, -1)
        priority = request.request.priority

        def order(worker: WorkerSupervisor) -> tuple[float, float]:
            own = request.seconds_left(worker.cost_model)
            return self.ahead(worker, priority) + own, self.ahead(worker, "batch")

        worker = min(self._seconds, key=order)
        self._put(request, worker)
        return worker

    def _put(self, request: InFlightRequest, worker: WorkerSupervisor) -> None:
        self._places[request] = worker
        self._add(request, worker, 1)

    def _add(self, request: InFlightRequest, worker: WorkerSupervisor, sign: int) -> None:
        self._seconds[worker][request.request.priority] += sign * request.seconds_left(worker.cost_model)


class Backlog:
    """What is in flight on the workers; nothing else adds seconds up."""

    def __init__(self, workers: Sequence[WorkerSupervisor], in_flight: Mapping[str, InFlightRequest]) -> None:
        self._workers = workers
        self._in_flight = in_flight

    def loads(self, without: str | None = None) -> DeviceLoads:
        """Of all requests in flight but one."""
        requests = (request for name, request in self._in_flight.items() if name != without)
        return DeviceLoads(self._takers, requests)

    def forecast(self, request: EngineRequest) -> list[Forecast]:
        """By device that takes work. A request in flight is not ahead of itself."""
        loads, new = self.loads(without=request.request_id), InFlightRequest(request)
        since = time.monotonic() - _PROVEN_SECONDS
        return [
            Forecast(
                ahead=loads.ahead(worker, request.priority),
                own=new.seconds_left(worker.cost_model),
                is_proven=worker.last_unit_ended > since,
            )
            for worker in self._takers
        ]

    def seconds(self, priority: Priority) -> float:
        """Ahead of a new request of this priority, on the device with the least of it."""
        loads = self.loads()
        return min(loads.ahead(worker, priority) for worker in self._takers)

    def first_done_seconds(self, request_ids: Iterable[str]) -> float:
        """Until the first of these requests is done, at the latest; 0 if none is in flight."""
        loads = self.loads()
        known = [self._in_flight[name] for name in request_ids if name in self._in_flight]
        return min(map(loads.done_seconds, known), default=0.0)

    @property
    def _takers(self) -> Sequence[WorkerSupervisor]:
        """The workers that take new work: silent ones only if there is no other; while none is ready, all."""
        ready = [worker for worker in self._workers if worker.is_ready]
        return [worker for worker in ready if not worker.is_silent] or ready or self._workers
