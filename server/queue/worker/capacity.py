"""How much more a worker should pull, and of which priority."""

from collections.abc import Collection

from engine.cost import CostModel
from engine.request import BATCH_SHARE, EngineRequest, Priority
from server.engine_port import Engine
from server.queue.worker.delivery import Delivery


class Capacity:
    """Compares what a worker holds with what its devices can begin soon."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def cost(self) -> CostModel | None:
        """Of a device that takes work."""
        return next((speed.cost for speed in self._engine.speeds()), None)

    def load(self, held: Collection[Delivery]) -> float:
        """1 if the batches of all devices are full."""
        speeds = self._engine.speeds()
        if not speeds:
            return 1.0
        return sum(each.load(speeds[0].cost) for each in held) / len(speeds)

    def has_room(self, held: Collection[Delivery]) -> bool:
        """Whether a device is not saturated, or will be without work within a step."""
        cost = self.cost
        return cost is not None and (self.load(held) < 1 or self._is_running_dry(held, cost))

    def _is_running_dry(self, held: Collection[Delivery], cost: CostModel) -> bool:
        if not all(delivery.is_begun for delivery in held):
            return False  # the engine does not count it yet
        step = max((delivery.step_seconds(cost) for delivery in held), default=0.0)
        return self._engine.backlog_seconds("batch") < step


class BatchShare:
    """Which priority to pull first: `batch` after ten times its own seconds of `interactive` requests."""

    def __init__(self) -> None:
        self._due = 0.0
        self._last = 0.0

    @property
    def order(self) -> tuple[Priority, Priority]:
        is_due = self._due > 0 and self._due >= self._last
        return ("batch", "interactive") if is_due else ("interactive", "batch")

    def pulled(self, request: EngineRequest, cost: CostModel | None) -> None:
        seconds = cost.request_seconds(request) if cost else 0.0
        if request.priority == "interactive":
            self._due += BATCH_SHARE * seconds
            self._last = self._last or seconds
        else:
            self._due, self._last = max(0.0, self._due - seconds), seconds
