"""The client's record of a request, from its reservation until it is answered or released. Torch-free."""

import asyncio
import time
from dataclasses import dataclass, field, replace

from engine.client.worker_supervisor import WorkerSupervisor
from engine.cost import CostModel
from engine.errors import DeadlineExceededError, WorkerCrashedError
from engine.messages import ImageDone, PreviewReady, RequestDone, RequestFailed, RequestOutput, StepDone
from engine.request import EngineRequest, Priority

# Workers that may die with only this request in their unit of work before the request fails.
_MAX_CRASHES = 2


@dataclass(eq=False, slots=True)
class InFlightRequest:
    """A request and its progress. `deadline` is in seconds of `time.monotonic()`; None is no deadline.

    `worker` is the one that has the request, and `crashes` counts workers that died with only this request in
    their unit of work. `steps_done` are by image index, of the current run; images already sent are in
    `request.skip`.
    """

    request: EngineRequest
    deadline: float | None = None
    worker: WorkerSupervisor | None = None
    crashes: int = 0
    steps_done: dict[int, int] = field(default_factory=dict)
    previews_sent: set[tuple[int, int]] = field(default_factory=set)
    is_started: bool = False
    is_answered: bool = False
    _outputs: asyncio.Queue[RequestOutput | Exception] = field(default_factory=asyncio.Queue)
    # Admission sums the seconds of all requests in flight each time, so they are cached.
    _priced: tuple[CostModel, EngineRequest, float] | None = None

    def promote(self, deadline: float | None, priority: Priority) -> None:
        """Adopt the deadline if it is later and the priority if it is higher."""
        own = self.deadline
        self.deadline = None if own is None or deadline is None else max(own, deadline)
        if priority == "interactive":
            self.request = replace(self.request, priority=priority)

    def start(self) -> None:
        """Allow dispatch to a worker from now on."""
        self.request = replace(self.request, submitted=time.monotonic())
        self.is_started = True

    def restart(self, suspects: tuple[str, ...]) -> None:
        """Prepare another run after the worker died with `suspects` in its unit of work."""
        self.worker = None
        self.steps_done, self._priced = {}, None
        if self.request.request_id in suspects:
            self.crashes += len(set(suspects)) == 1
            self.request = replace(self.request, is_suspect=True)
        if self.crashes == _MAX_CRASHES:
            self.fail(WorkerCrashedError("the worker died twice while it ran only this request"))

    def receive(self, message: RequestOutput | RequestFailed) -> None:
        """Record a message of the worker. A preview that an earlier run has sent is dropped."""
        match message:
            case RequestFailed():
                self.fail(message.error)
                return
            case StepDone():
                self.steps_done[message.image_index] = message.step
                self._priced = None
            case PreviewReady():
                key = (message.image_index, message.preview_index)
                if key in self.previews_sent:
                    return
                self.previews_sent.add(key)
            case ImageDone():
                self.request = replace(self.request, skip=self.request.skip | {message.image_index})
            case RequestDone():
                self.is_answered = True
        self._outputs.put_nowait(message)

    def fail(self, error: Exception) -> None:
        """Answer the request with an error."""
        self.is_answered = True
        self._outputs.put_nowait(error)

    async def next_output(self) -> RequestOutput:
        """Raises EngineError."""
        output = await self._next()
        if isinstance(output, Exception):
            raise output
        return output

    async def _next(self) -> RequestOutput | Exception:
        """Wait until the deadline, which may be extended meanwhile. It is in the event loop's own time."""
        while True:
            deadline = self.deadline
            try:
                async with asyncio.timeout_at(deadline):
                    return await self._outputs.get()
            except TimeoutError:
                if self.deadline == deadline:
                    raise DeadlineExceededError("the deadline passed") from None

    @property
    def has_begun(self) -> bool:
        """Whether its worker has completed a step of it."""
        return bool(self.steps_done)

    @property
    def can_move(self) -> bool:
        """Whether it can be sent to another worker: its own has neither begun it nor is running it."""
        is_running = self.worker is not None and self.request.request_id in self.worker.current_request_ids
        return self.is_started and not (self.has_begun or is_running or self.is_answered)

    def seconds_left(self, cost: CostModel | None) -> float:
        """Predicted seconds of device time left, over all images; 0 if the device has no cost model yet."""
        if self.is_answered or cost is None:
            return 0.0
        priced = self._priced
        if priced is None or priced[0] is not cost or priced[1] is not self.request:
            seconds = cost.request_seconds(self.request, self.steps_done)
            self._priced = priced = (cost, self.request, seconds)
        return priced[2]


class InFlightRequests(dict[str, InFlightRequest]):
    """The requests in flight of an engine, by id."""

    def reserve(self, request: EngineRequest, deadline: float | None = None) -> InFlightRequest:
        """Count a request in the backlog before it is generated. Call it again to replace the request.

        `deadline` is in seconds of `time.monotonic()`. A second call does not change it; `promote` does.
        """
        reserved = self.get(request.request_id)
        if reserved is None:
            reserved = self[request.request_id] = InFlightRequest(request, deadline)
        reserved.request = request
        return reserved

    def promote(self, request_id: str, deadline: float | None, priority: Priority) -> InFlightRequest | None:
        """Extend the deadline or raise the priority. Returns the request if that changed it; an unknown id is
        ignored."""
        request = self.get(request_id)
        if request is None:
            return None
        before = request.deadline, request.request.priority
        request.promote(deadline, priority)
        return request if before != (request.deadline, request.request.priority) else None
