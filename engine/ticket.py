"""An accepted request as the client keeps it until it is answered. Torch-free."""

import asyncio
from dataclasses import dataclass, field, replace

from engine.errors import WorkerCrashedError
from engine.messages import EngineRequest, RequestDone, RequestFailed, RequestOutput
from engine.supervisor import Worker

# Deaths of a worker that ran nothing but one request, before that request is given up.
_MAX_KILLS = 2


@dataclass(eq=False, slots=True)
class Ticket:
    """An accepted request on its way. `steps_done` by image; `kills` counts workers that died on it alone."""

    request: EngineRequest
    seconds: float
    outputs: asyncio.Queue[RequestOutput | Exception] = field(default_factory=asyncio.Queue)
    worker: Worker | None = None
    kills: int = 0
    steps_done: dict[int, int] = field(default_factory=dict)
    previews_sent: set[tuple[int, int]] = field(default_factory=set)
    is_answered: bool = False

    def start_again(self, suspects: tuple[str, ...]) -> None:
        """Its worker died while it ran `suspects`."""
        self.worker = None
        num_steps = self.request.sampling.num_inference_steps
        self.steps_done = dict.fromkeys(self.request.skip, num_steps)
        if self.request.request_id in suspects:
            self.kills += len(set(suspects)) == 1
            self.request = replace(self.request, is_suspect=True)
        if self.kills == _MAX_KILLS:
            self.put(WorkerCrashedError("the worker died on this request, twice"))

    def put(self, output: RequestOutput | Exception) -> None:
        """After the last one there is nothing more to do for it."""
        self.is_answered |= isinstance(output, RequestDone | RequestFailed | Exception)
        self.outputs.put_nowait(output)

    @property
    def seconds_left(self) -> float:
        total = self.request.sampling.num_inference_steps * len(self.request.seeds)
        return self.seconds * (1 - sum(self.steps_done.values()) / total)
