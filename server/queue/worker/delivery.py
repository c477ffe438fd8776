"""One request of the queue on a worker: runs it and stores its results."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace

import nats.errors
from nats.aio.msg import Msg
from nats.js.errors import NotFoundError

from engine.cost import CostModel
from engine.errors import EngineDeadError, EngineError, GenerationError, WorkerCrashedError
from engine.messages import ImageDone, PreviewReady, RequestDone, RequestOutput, StepDone
from engine.request import SourceImage
from server.engine_port import Engine
from server.queue import names
from server.queue.connection.broker import Broker
from server.queue.files.chunks import ChunkedFiles
from server.queue.files.sources import Sources
from server.queue.fleet import Fleet
from server.queue.wire import Done, Promotion, Run, Work, decode
from server.queue.worker.results import Results

# Workers that may die with a request before it fails.
MAX_DEATHS = 2
AGAIN_BEATS = 2
# A beat apart, for an image that a front stores again after the broker lost it.
UPLOAD_TRIES = 5

logger = logging.getLogger(__name__)


class Delivery:
    """A message of the work stream and the request in it. `on_change` is called when it needs less of the
    device, `is_begun` set with its first output and `is_generated` with its last. `is_suspect` unless it is
    known that no worker died with it."""

    def __init__(
        self,
        message: Msg,
        work: Work,
        engine: Engine,
        broker: Broker,
        fleet: Fleet,
        on_change: Callable[[], None],
        until_alone: Callable[["Delivery"], Awaitable[None]],
    ) -> None:
        self.message = message
        self.work = work
        self._engine = engine
        self._broker = broker
        self._fleet = fleet
        self._on_change = on_change
        self._until_alone = until_alone
        # Two submissions may have one request id: a job that another front runs again.
        self.request = replace(work.request, request_id=work.reply.rpartition(".")[2])
        self._queue_seconds = max(0.0, broker.clock.now() - work.submitted)
        self._images_left = len(work.request.seeds)
        self.deaths = 0
        self.is_suspect = self.is_again
        self._results = Results(broker, fleet.id, work.reply)
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
        deadline = self._broker.clock.local(promotion.deadline)
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
        await self._results.give_back(self.deaths)
        await self.message.nak()

    async def _stop(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})

    async def _run(self) -> None:
        try:
            if await self._is_mine():
                await self._results.finish(await self._result())
                await self.message.ack()
        except EngineDeadError:
            logger.warning("%s is left to another worker", self.request.request_id)
        finally:
            self._results.close()

    async def _is_mine(self) -> bool:
        """Whether this worker should run it, which a message that is delivered again may not say."""
        if not self.is_again:
            return True
        if await self._results.last(names.done(self.work.reply)) is not None:
            await self.message.ack()
            return False
        data = await self._results.last(names.run(self.work.reply))
        run = decode(data, Run) if data else Run(worker="", deaths=0)
        if run.worker and (not self._fleet.is_settled or self._fleet.holds(run.worker, self.work.reply)):
            await self.message.nak(delay=AGAIN_BEATS * self._fleet.beat_seconds)
            return False
        self.deaths = run.deaths + (run.worker not in ("", self._fleet.id))
        self.is_suspect = self.deaths > 0
        self._on_change()
        return True

    async def _result(self) -> Done:
        """Run the request and store its images."""
        if self.deaths >= MAX_DEATHS:
            logger.error("%s is given up: %d workers died with it", self.request.request_id, self.deaths)
            return Done.failed(WorkerCrashedError(f"{self.deaths} workers died while they ran this request"))
        if self.is_suspect:  # so that no other request dies with it a second time
            await self._until_alone(self)
        begun = asyncio.create_task(self._results.begin(self.deaths))
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
        await begun
        return done

    async def _generate(self) -> Done:
        request = replace(self.request, is_suspect=self.is_suspect, source=await self._source())
        self._engine.reserve(request, self._broker.clock.local(self.work.deadline))
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

    async def _source(self) -> SourceImage | None:
        """With its pixels. Raises GenerationError."""
        source, reply = self.request.source, self.work.reply
        if source is None:
            return None
        files = ChunkedFiles(self._broker, names.UPLOADS.name, names.uploads(names.front_of(reply)))
        for _ in range(UPLOAD_TRIES):
            await self._broker.wait_up()
            with contextlib.suppress(nats.errors.Error, TimeoutError):
                found = await Sources(files).get(names.submission_of(reply), source)
                if found is not None:
                    return found
            await asyncio.sleep(self._fleet.beat_seconds)
        raise GenerationError("the image of the request is not stored any more")

    async def _forward(self, output: RequestOutput) -> None:
        self.is_begun = True
        match output:
            case ImageDone():
                self._images_left -= 1
                self._results.image(output, is_last=self._images_left == 0)
            case StepDone():
                await self._results.step(output)
            case PreviewReady():
                await self._results.preview(output)
        self._on_change()
