"""Predicted seconds of the requests in flight of all fronts, for admission control."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from engine.client.backlog import Forecast
from engine.client.in_flight import InFlightRequest
from engine.cost import CostModel, DeviceSpeed
from engine.request import EngineRequest, Priority
from server.queue.fleet import Fleet
from server.queue.wire import FrontNews


class FleetBacklog:
    """Sums the requests in flight of this front and what the other fronts announced.

    Free devices take the next request, so that the work of the fleet is ahead of a new request once for all
    devices. Seconds are those of the fastest device; slower ones count as a part of it.
    """

    def __init__(self, fleet: Fleet, in_flight: Mapping[str, InFlightRequest]) -> None:
        self._fleet = fleet
        self._in_flight = in_flight

    def forecast(self, request: EngineRequest) -> Forecast:
        """For a request that takes a device alone; zeros while no device is known."""
        speeds = self._fleet.speeds()
        if not speeds:
            return Forecast(0.0, 0.0, is_proven=False)
        own = [speed.cost.request_seconds(request) for speed in speeds]
        devices = sum(min(own) / each for each in own) if min(own) > 0 else float(len(own))
        interactive, batch = self._totals(_fastest(speeds), without=request.request_id)
        is_batch = request.priority == "batch"
        return Forecast(
            ahead=(interactive + (sum(batch.values()) if is_batch else 0.0)) / devices,
            own=max(own),
            shared=[] if is_batch else [seconds / devices for seconds in batch.values()],
            is_proven=all(speed.is_proven for speed in speeds),
        )

    def seconds(self, priority: Priority) -> float:
        """Seconds of work ahead of a new request of this priority."""
        speeds = self._fleet.speeds()
        if not speeds:
            return 0.0
        interactive, batch = self._totals(_fastest(speeds))
        return (interactive + (sum(batch.values()) if priority == "batch" else 0.0)) / len(speeds)

    def first_done_seconds(self, request_ids: Iterable[str]) -> float:
        """Upper bound of the seconds until the first of these requests is done; 0 if none is in flight."""
        known = [self._in_flight[name].request for name in request_ids if name in self._in_flight]
        return min((self.forecast(request).total for request in known), default=0.0)

    def news(self) -> FrontNews:
        speeds = self._fleet.speeds()
        interactive, batch = self._own(_fastest(speeds) if speeds else None)
        return FrontNews(
            id=self._fleet.id, checkpoint=self._fleet.checkpoint, interactive=interactive, batch=batch
        )

    def _totals(self, cost: CostModel, without: str | None = None) -> tuple[float, Mapping[str, float]]:
        """Seconds of `interactive` requests, and of `batch` requests by resolution."""
        interactive, batch = self._own(cost, without)
        for front in self._fleet.other_fronts():
            interactive += front.interactive
            for resolution, seconds in front.batch.items():
                batch[resolution] += seconds
        return interactive, batch

    def _own(
        self, cost: CostModel | None, without: str | None = None
    ) -> tuple[float, defaultdict[str, float]]:
        interactive, batch = 0.0, defaultdict[str, float](float)
        for name, each in self._in_flight.items():
            if name == without:
                continue
            if each.request.priority == "interactive":
                interactive += each.seconds_left(cost)
            else:
                batch[f"{each.request.width}x{each.request.height}"] += each.seconds_left(cost)
        return interactive, batch


def _fastest(speeds: Iterable[DeviceSpeed]) -> CostModel:
    return min((speed.cost for speed in speeds), key=lambda cost: cost.pass_.seconds([4096]))
