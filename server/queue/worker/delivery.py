"""One request of the queue on a worker: runs it and stores its results."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace

import nats.errors
from nats.aio.msg import Msg
from nats.js.api import Header
from nats.js.errors import APIError, NotFoundError

from engine.cost import CostModel
from engine.errors import EngineDeadError, EngineError, GenerationError, WorkerCrashedError
from engine.messages import ImageDone, PreviewReady, RequestDone, RequestOutput, StepDone
from server.engine_port import Engine
from server.queue import names
from server.queue.broker import Broker
from server.queue.fleet import Fleet
from server.queue.wire import Done, Part, Progress, Promotion, Run, Work, decode, encode

# Workers that may die with a request before it fails.
MAX_DEATHS = 2
PART_BYTES = 512 << 10
AGAIN_BEATS = 2
WRONG_SEQUENCE = (10071, 10164)

logger = logging.getLogger(__name__)


class Delivery:
    """A message of the work stream and the request in it. `on_change` is called when it needs less of the
    device, `is_begun` set with its first output and `is_generated` with its last."""

    def __init__(
        self,
        message: Msg,
        work: Work,
        engine: Engine,
        broker: Broker,
        fleet: Fleet,
        on_change: Callable[[], None],
    ) -> None:
        self.message = message
        self.work = work
        self._engine = engine
        self._broker = broker
        self._fleet = fleet
        self._on_change = on_change
        # Two submissions may have one request id: a job that another front runs again.
        self.request = replace(work.request, request_id=work.reply.rpartition(".")[2])
        self._queue_seconds = max(0.0, time.time() - work.submitted)
        self._images_left = len(work.request.seeds)
        self.deaths = 0
        self._uploads: list[asyncio.Task[None]] = []
        self.is_begun = self.is_generated = False
        self.task: asyncio.Task[None] = asyncio.create_task(self._run())

    @property
    def is_again(self) -> bool:
        """Whether a worker may have had it before."""
        return self.work.is_again or self.message.metadata.num_delivered > 1

    def load(self, cost: CostModel) -> float:
        """Its share of a batch that saturates a device."""
        if self.is_generated:
            return 0.0
        tokens = cost.image_tokens(*self.request.resolution)
        share = (tokens + len(self.request.token_ids)) / cost.step_tokens(tokens)
        share = max(share, 1 / cost.max_batch_size)
        return self._images_left * min(share, 1.0)

    def step_seconds(self, cost: CostModel) -> float:
        """Predicted seconds of one of its steps alone."""
        tokens = cost.image_tokens(*self.request.resolution)
        return cost.step_seconds(tokens, [len(self.request.token_ids)], 1)

    def promote(self, promotion: Promotion) -> None:
        deadline = _monotonic(promotion.deadline)
        self._engine.promote(self.request.request_id, deadline, promotion.priority)

    async def keep(self) -> None:
        """Tell the broker that it is still held."""
        await self.message.in_progress()

    async def is_wanted(self) -> bool:
        """Whether its message is still in the stream."""
        sequence = self.message.metadata.sequence.stream
        try:
            await self._broker.jetstream.get_msg(names.WORK.name, sequence)
        except NotFoundError:
            return self.is_generated
        except (nats.errors.Error, TimeoutError):
            return True
        return True

    async def drop(self) -> None:
        """Stop: nobody waits for it."""
        await self._stop()
        await self.message.ack()

    async def give_back(self) -> None:
        """Stop, and let another worker have it at once. It does not count as a death."""
        await self._stop()
        await self._store("run", encode(Run(worker="", deaths=self.deaths)))
        await self.message.nak()

    async def _stop(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})

    async def _run(self) -> None:
        try:
            if await self._is_mine():
                await self._finish(await self._result())
                await self.message.ack()
        except EngineDeadError:
            logger.warning("%s is left to another worker", self.request.request_id)
        finally:
            for upload in self._uploads:
                upload.cancel()

    async def _is_mine(self) -> bool:
        """Whether this worker should run it, which a message that is delivered again may not say."""
        if not self.is_again:
            return True
        if await self._last("done") is not None:
            await self.message.ack()
            return False
        data = await self._last("run")
        run = decode(data, Run) if data else Run(worker="", deaths=0)
        if not self._fleet.is_settled or self._fleet.holds(run.worker, self.work.reply):
            await self.message.nak(delay=AGAIN_BEATS * self._fleet.beat_seconds)
            return False
        self.deaths = run.deaths + (run.worker not in ("", self._fleet.id))
        return True

    async def _result(self) -> Done:
        """Run the request and store its images."""
        if self.deaths >= MAX_DEATHS:
            return Done.failed(WorkerCrashedError(f"{self.deaths} workers died while they ran this request"))
        begun = asyncio.create_task(
            self._store("run", encode(Run(worker=self._fleet.id, deaths=self.deaths)))
        )
        try:
            done = await self._generate()
        except EngineDeadError:
            raise
        except EngineError as error:
            done = Done.failed(error)
        except Exception as error:
            logger.error("%s failed", self.request.request_id, exc_info=error)
            done = Done.failed(GenerationError(type(error).__name__))
        self.is_generated = True
        self._on_change()
        await asyncio.gather(begun, *self._uploads)
        return done

    async def _generate(self) -> Done:
        request = replace(self.request, is_suspect=self.deaths > 0)
        self._engine.reserve(request, _monotonic(self.work.deadline))
        done: Done | None = None
        async with aclosing(self._engine.generate(request)) as outputs:
            async for output in outputs:
                if isinstance(output, RequestDone):
                    queue = output.times.queue + self._queue_seconds
                    done = Done(times=replace(output.times, queue=queue))
                else:
                    await self._forward(output)
        assert done is not None, "an engine's last output is RequestDone"
        return done

    async def _forward(self, output: RequestOutput) -> None:
        self.is_begun = True
        match output:
            case ImageDone():
                self._images_left -= 1
                self._uploads.append(asyncio.create_task(self._upload(output)))
            case StepDone():
                await self._progress(Progress(step=output))
            case PreviewReady():
                await self._progress(Progress(preview=output))
        self._on_change()

    async def _progress(self, progress: Progress) -> None:
        if self._broker.is_up:
            await self._broker.client.publish(names.progress(self.work.reply), encode(progress))

    async def _upload(self, image: ImageDone) -> None:
        size = min(PART_BYTES, self._broker.max_payload // 2)
        for offset in range(0, len(image.rgb), size):
            part = Part(
                image_index=image.image_index,
                seed=image.seed,
                width=image.width,
                height=image.height,
                offset=offset,
                data=image.rgb[offset : offset + size],
            )
            await self._store(f"{self._fleet.id}.{image.image_index}.{offset}", encode(part))

    async def _finish(self, done: Done) -> None:
        """Answer, unless another worker has."""
        try:
            headers = {Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value: "0"}
            await self._broker.store(f"{self.work.reply}.done", encode(done), headers)
        except APIError as error:
            if error.err_code not in WRONG_SEQUENCE:
                raise
            logger.info("%s was answered before", self.request.request_id)

    async def _store(self, name: str, data: bytes) -> None:
        await self._broker.store(f"{self.work.reply}.{name}", data)

    async def _last(self, name: str) -> bytes | None:
        """The last message stored as a result under this name."""
        try:
            subject = f"{self.work.reply}.{name}"
            found = await self._broker.jetstream.get_last_msg(names.RESULTS.name, subject, direct=True)
        except NotFoundError:
            return None
        return found.data


def _monotonic(deadline: float | None) -> float | None:
    """Seconds since the epoch as seconds of `time.monotonic()`."""
    return None if deadline is None else deadline - time.time() + time.monotonic()
