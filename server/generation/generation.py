"""One admitted request on its way through processing and the engine."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace

from engine.errors import EngineError
from engine.messages import ImageDone, PreviewReady, RequestDone, RequestOutput, StepDone
from engine.request import Priority
from server.access.admission import AdmissionSlot
from server.engine_port import Engine
from server.generation.image_encoder import MEDIA_TYPES, PREVIEW_FORMAT, ImageEncoder
from server.generation.parameters import Parameters
from server.generation.processing import Processing
from server.generation.transcript import (
    AnsweredError,
    Event,
    ImageFile,
    Preview,
    QueueState,
    Subscription,
    TakenOverError,
    Timings,
    Transcript,
)
from server.schemas.errors import ApiError, from_engine, internal_error, server_stopped

logger = logging.getLogger(__name__)


class Generation:
    """Writes its transcript until it is done, or until its last subscription is left, which aborts it in the
    engine. Its task does not raise; the transcript holds the error."""

    task: asyncio.Task[None]  # set by `start`

    def __init__(
        self,
        engine: Engine,
        slot: AdmissionSlot,
        processing: Processing,
        encoder: ImageEncoder,
        parameters: Parameters,
        confirm: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`confirm` is that of the permit to run it, if it needs one."""
        self._engine = engine
        self._slot = slot
        self._processing = processing
        self._encoder = encoder
        self._parameters = parameters
        self._check_permit = confirm
        self._encoding_seconds = 0.0
        self._subscriptions = 0
        self.transcript = Transcript(slot.request.request_id, parameters.seeds)

    def start(self) -> None:
        """Run in a task of the event loop."""
        self.task = asyncio.create_task(self._run())
        self.task.add_done_callback(lambda _: self._slot.release())

    def subscribe(self, deadline: float, priority: Priority) -> Subscription:
        """The generation runs until the latest deadline of its subscriptions, at their highest priority."""
        self._subscriptions += 1
        self._engine.promote(self.transcript.request_id, deadline, priority)
        return Subscription(self.transcript, deadline, self._left, self._queue_state)

    def _left(self) -> None:
        self._subscriptions -= 1
        if self._subscriptions == 0:
            self.task.cancel()

    def _queue_state(self) -> QueueState | None:
        """None once it has begun."""
        position = self._slot.position
        if position == 0:
            return None
        seconds = self._engine.first_done_seconds([self.transcript.request_id])
        return QueueState(position, round(seconds, 1))

    @property
    def is_abandoned(self) -> bool:
        """Its last subscription was left before it was done."""
        return self.task.cancelled() or self.task.cancelling() > 0

    async def _run(self) -> None:
        try:
            await self._prepare()
            await self._generate()
            self.transcript.finish()
        except asyncio.CancelledError:
            self.transcript.finish(server_stopped())
            raise
        except AnsweredError as other:
            self.transcript.adopt(other.transcript)
        except Exception as error:
            self.transcript.finish(self._failure(error))

    def _failure(self, error: Exception) -> ApiError:
        if isinstance(error, ApiError):
            return error.copy()
        if isinstance(error, EngineError):
            return from_engine(error)
        fields = {"generation_id": self.transcript.request_id}
        logger.error("a request failed", exc_info=error, extra={"fields": fields})
        return internal_error()

    async def _prepare(self) -> None:
        request = self._slot.request
        self._parameters, token_ids = await self._processing.prepare(self._parameters, request.token_ids)
        # Subscriptions may have promoted the request meanwhile.
        self._slot.update(replace(self._slot.request, token_ids=token_ids))
        self.transcript.prepared(self._parameters, len(token_ids))

    async def _generate(self) -> None:
        """Again if another server took the request over and failed."""
        while True:
            await self._confirm()
            try:
                await self._receive()
                return
            except TakenOverError:
                self._slot.renew()

    async def _receive(self) -> None:
        async with aclosing(self._engine.generate(self._slot.request)) as outputs:
            async for output in outputs:
                event = await self._event(output)
                if isinstance(event, ImageFile):
                    await self._confirm()
                self.transcript.add(event)

    async def _confirm(self) -> None:
        if self._check_permit is not None:
            await self._check_permit()

    async def _event(self, output: RequestOutput) -> Event:
        match output:
            case ImageDone():
                return ImageFile(output.image_index, output.seed, await self._file(output))
            case PreviewReady():
                data = await self._encoder.encode_preview(output)
                signed = await self._processing.sign(data, MEDIA_TYPES[PREVIEW_FORMAT])
                return Preview(output.image_index, output.preview_index, signed)
            case RequestDone():
                return Timings(output.times, self._encoding_seconds)
            case StepDone():
                return output

    async def _file(self, image: ImageDone) -> bytes:
        started = time.perf_counter()
        data = await self._encoder.encode(image, self._parameters)
        self._encoding_seconds += time.perf_counter() - started
        return await self._processing.finish(data, MEDIA_TYPES[self._parameters.output_format])
