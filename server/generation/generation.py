"""One accepted request on its way through the engine, followed by one response or several."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from engine.errors import EngineError, GenerationError
from engine.messages import ImageDone, PreviewReady, RequestDone, RequestFailed, RequestOutput, StepDone
from engine.request import EngineRequest, Priority
from server.access.admission import AdmissionSlot
from server.engine_port import Engine
from server.generation.image_encoder import MEDIA_TYPES, PREVIEW_FORMAT, ImageEncoder
from server.generation.parameters import Parameters
from server.generation.processing import Processing
from server.generation.transcript import Event, ImageFile, Preview, Subscription, Timings, Transcript
from server.schemas.errors import ApiError, from_engine, internal_error, server_stopped

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Course:
    """What a generation asks of others: to be let in with another prompt, and what its files say of it."""

    renew: Callable[[EngineRequest], None]
    describe: Callable[[Parameters], dict[str, Any]]


class Generation:
    """Writes its transcript, and runs until its last subscription leaves: a request that nobody waits for is
    aborted in the engine. Its task never fails; the transcript does."""

    def __init__(
        self,
        engine: Engine,
        encoder: ImageEncoder,
        slot: AdmissionSlot,
        parameters: Parameters,
        processing: Processing,
        course: Course,
    ) -> None:
        self._slot = slot
        self._parameters = parameters
        self._engine = engine
        self._encoder = encoder
        self._processing = processing
        self._course = course
        self._image_seconds = 0.0
        self._subscriptions = 0
        self.transcript = Transcript(slot.request.request_id, parameters.seeds)
        self.task = asyncio.create_task(self._run())

    def join(self, deadline: float, priority: Priority) -> Subscription:
        """From now on it has until the latest deadline of its subscriptions, at their highest priority."""
        self._subscriptions += 1
        self._engine.promote(self.transcript.request_id, deadline, priority)
        return Subscription(self.transcript, deadline, self._leave)

    def _leave(self) -> None:
        self._subscriptions -= 1
        if self._subscriptions == 0:
            self.task.cancel()

    @property
    def is_abandoned(self) -> bool:
        """Its last subscription left before it was done."""
        return self.task.cancelled() or self.task.cancelling() > 0

    async def _run(self) -> None:
        try:
            await self._prepare()
            await self._draw()
            self.transcript.finish()
        except asyncio.CancelledError:
            self.transcript.finish(server_stopped())
            raise
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
        prepared = await self._processing.prepare(self._parameters, self._slot.request.token_ids)
        self._parameters = prepared.parameters
        self._course.renew(replace(self._slot.request, token_ids=prepared.token_ids))
        self.transcript.prepared(prepared.parameters, len(prepared.token_ids))

    async def _draw(self) -> None:
        async with aclosing(self._engine.generate(self._slot.request)) as outputs:
            async for output in outputs:
                self.transcript.add(await self._event(output))

    async def _event(self, output: RequestOutput) -> Event:
        match output:
            case ImageDone():
                return ImageFile(output.image_index, output.seed, await self._file(output))
            case PreviewReady():
                data = await self._encoder.encode_preview(output.rgb, (output.width, output.height))
                signed = await self._processing.sign(data, MEDIA_TYPES[PREVIEW_FORMAT])
                return Preview(output.image_index, output.preview_index, signed)
            case RequestDone():
                return Timings(output.times, self._image_seconds)
            case StepDone():
                return output
            case RequestFailed():
                raise GenerationError(output.message)

    async def _file(self, image: ImageDone) -> bytes:
        data = await self._encode(image)
        return await self._processing.finish(data, MEDIA_TYPES[self._parameters.output_format])

    async def _encode(self, image: ImageDone) -> bytes:
        started = time.perf_counter()
        wanted = self._parameters
        facts = self._course.describe(wanted) | {"seed": image.seed}
        size = (image.width, image.height)
        data = await self._encoder.encode(image.rgb, size, wanted.output_format, wanted.compression, facts)
        self._image_seconds += time.perf_counter() - started
        return data
