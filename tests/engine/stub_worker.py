"""Workers without processes, whose work advances only on request."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from engine.client.engine_client import EngineClient
from engine.config.model_config import ModelConfig
from engine.config.options import EngineOptions
from engine.cost import CostModel, LinearCost
from engine.messages import Abort, FromWorker, ImageDone, RequestDone, StageTimes, StepDone
from engine.request import EngineRequest, Priority

CONFIG = ModelConfig.load(Path(__file__).parents[2] / "models" / "demo")
# An unguided step of a sample takes one second; everything else takes no time.
SECOND = CostModel(LinearCost(1.0, 0.0), LinearCost(0.0, 0.0), LinearCost(0.0, 0.0), 16, 1, 10_000)


@dataclass(eq=False)
class StubWorker:
    """Runs one request at a time, interactive requests first."""

    cost_model: CostModel | None = SECOND
    is_ready: bool = True
    is_silent: bool = False
    current_request_ids: tuple[str, ...] = ()
    state: str = "ready"
    last_unit_ended: float = math.inf
    restarts: int = 0
    start_seconds: float = 0.0
    queue: dict[str, EngineRequest] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)

    def send(self, message: object) -> None:
        if isinstance(message, EngineRequest):
            self.queue[message.request_id] = message
            self.steps[message.request_id] = 0
        elif isinstance(message, Abort):
            self.queue.pop(message.request_id, None)

    def seconds(self, priority: Priority) -> float:
        """Seconds left of its requests of this priority, summed independently of the client."""
        return sum(
            each.sampling.num_inference_steps * len(each.seeds) - self.steps[name]
            for name, each in self.queue.items()
            if each.priority == priority
        )

    def step(self) -> list[FromWorker]:
        """Run one step of one sample."""
        if not self.queue:
            return []
        request = min(self.queue.values(), key=lambda each: each.priority == "batch")
        name, num_steps = request.request_id, request.sampling.num_inference_steps
        image, step = divmod(self.steps[name], num_steps)
        self.steps[name] += 1
        sent: list[FromWorker] = [StepDone(name, image, step + 1, num_steps)]
        if step + 1 == num_steps:
            sent.append(ImageDone(name, image, 0, 64, 64, b""))
        if self.steps[name] == num_steps * len(request.seeds):
            del self.queue[name]
            sent.append(RequestDone(name, StageTimes(0, 0, 0, 0)))
        return sent


def client(devices: int = 1, *costs: CostModel) -> EngineClient:
    """An engine on stub workers: one for each device, or for each of `costs`."""
    made = EngineClient(CONFIG, EngineOptions())
    made._workers[:] = [StubWorker(cost) for cost in costs or [SECOND] * devices]  # type: ignore[list-item]
    return made


def work(engine: EngineClient, seconds: int) -> None:
    """Run `seconds` steps on each device."""
    for _ in range(seconds):
        for worker in engine._workers:
            for message in worker.step():  # type: ignore[attr-defined]
                engine.on_message(worker, message)
