"""A request as the client keeps it, from its reservation until it is answered or released. Torch-free."""

import asyncio
import time
from dataclasses import dataclass, field, replace

from engine.client.worker_supervisor import WorkerSupervisor
from engine.cost import CostModel
from engine.errors import DeadlineExceededError, GenerationError, WorkerCrashedError
from engine.messages import ImageDone, PreviewReady, RequestDone, RequestFailed, RequestOutput, StepDone
from engine.request import EngineRequest, Priority

# Deaths of a worker that ran nothing but one request, before that request is given up.
_MAX_KILLS = 2


@dataclass(eq=False, slots=True)
class InFlightRequest:
    """`steps_done` by image, of its present run; the images that are done are in `request.skip`.

    `worker` is the one that has it; `kills` counts workers that died on it alone.
    """

    request: EngineRequest
    deadline: float | None = None
    outputs: asyncio.Queue[RequestOutput | RequestFailed | Exception] = field(default_factory=asyncio.Queue)
    worker: WorkerSupervisor | None = None
    kills: int = 0
    steps_done: dict[int, int] = field(default_factory=dict)
    previews_sent: set[tuple[int, int]] = field(default_factory=set)
    is_started: bool = False
    is_answered: bool = False
    _priced: tuple[CostModel, EngineRequest, float] | None = None  # each admission sums all that is in flight

    def promote(self, deadline: float | None, priority: Priority) -> None:
        """Take over the later deadline (None is no deadline) and the higher priority."""
        own = self.deadline
        self.deadline = None if own is None or deadline is None else max(own, deadline)
        if priority == "interactive":
            self.request = replace(self.request, priority=priority)

    def start(self) -> None:
        """From now on a worker may take it."""
        self.request = replace(self.request, submitted=time.monotonic())
        self.is_started = True

    def start_again(self, suspects: tuple[str, ...]) -> None:
        """Its worker died while it ran `suspects`."""
        self.worker = None
        self.steps_done, self._priced = {}, None
        if self.request.request_id in suspects:
            self.kills += len(set(suspects)) == 1
            self.request = replace(self.request, is_suspect=True)
        if self.kills == _MAX_KILLS:
            self.put(WorkerCrashedError("the worker died on this request, twice"))

    def deliver(self, output: RequestOutput | RequestFailed) -> None:
        """Once: a second run does not send again what the first one sent."""
        match output:
            case StepDone():
                self.steps_done[output.image_index] = output.step
                self._priced = None
            case PreviewReady():
                key = (output.image_index, output.preview_index)
                if key in self.previews_sent:
                    return
                self.previews_sent.add(key)
            case ImageDone():
                self.request = replace(self.request, skip=self.request.skip | {output.image_index})
        self.put(output)

    def put(self, output: RequestOutput | RequestFailed | Exception) -> None:
        """After the last output there is nothing more to do for it."""
        self.is_answered |= isinstance(output, RequestDone | RequestFailed | Exception)
        self.outputs.put_nowait(output)

    async def next_output(self) -> RequestOutput:
        """Raises DeadlineExceededError, GenerationError or EngineDeadError."""
        output = await self._output()
        if isinstance(output, Exception):
            raise output
        if isinstance(output, RequestFailed):
            raise GenerationError(output.message)
        return output

    async def _output(self) -> RequestOutput | RequestFailed | Exception:
        """Deadlines are in the event loop's own time, and may be put off while this waits."""
        while True:
            deadline = self.deadline
            try:
                async with asyncio.timeout_at(deadline):
                    return await self.outputs.get()
            except TimeoutError:
                if self.deadline == deadline:
                    raise DeadlineExceededError("the deadline passed") from None

    @property
    def has_begun(self) -> bool:
        """Whether its worker has taken a step for it."""
        return bool(self.steps_done)

    @property
    def can_move(self) -> bool:
        """Whether another worker may have it: its own has taken no step, and is not at it."""
        is_at_work = self.worker is not None and self.request.request_id in self.worker.current_request_ids
        return self.is_started and not (self.has_begun or is_at_work or self.is_answered)

    def seconds_left(self, cost: CostModel | None) -> float:
        """Device seconds still to spend on it, over all its images; 0 for a device that was never ready."""
        if self.is_answered or cost is None:
            return 0.0
        priced = self._priced
        if priced is None or priced[0] is not cost or priced[1] is not self.request:
            seconds = cost.request_seconds(self.request, self.steps_done)
            self._priced = priced = (cost, self.request, seconds)
        return priced[2]
