"""A response of server-sent events."""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from server.generation.parameters import Parameters
from server.generation.transcript import Event, ImageFile, Subscription, Timings
from server.observability.request_record import RequestRecord
from server.offload import offload
from server.responses.frames import comment, failed, frame_of, queued
from server.responses.images_response import Publish
from server.schemas.errors import ApiError, ClientDisconnectedError, internal_error, server_stopped
from server.transport.disconnect import unless_disconnected

# Interval of the events about the queue, in seconds.
QUEUE_SECONDS = 1.0
logger = logging.getLogger(__name__)


class FrameStream(StreamingResponse, ABC):
    """Sends frames until they end or the client disconnects. An error after the first is the last frame."""

    media_type = "text/event-stream"

    def __init__(self, record: RequestRecord) -> None:
        super().__init__(self._guarded(), headers={"X-Accel-Buffering": "no"})
        self._record = record

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_disconnected(Request(scope, receive), self._respond(send))
        except ClientDisconnectedError as error:
            await self._end(error, send)
        except asyncio.CancelledError:
            await self._end(server_stopped(), send)

    @abstractmethod
    def frames(self) -> AsyncIterator[bytes]:
        """Raises ApiError."""

    async def _respond(self, send: Send) -> None:
        await self.stream_response(send)

    async def _end(self, error: ApiError, send: Send) -> None:
        """Send the error as the last event. Raises it before the first byte and after the last."""
        if self._record.status == 0 or self._record.is_answered:
            raise error
        await send({"type": "http.response.body", "body": self._failed(error)})

    async def _guarded(self) -> AsyncIterator[bytes]:
        yield comment("accepted")
        try:
            async for frame in self.frames():
                yield frame
        except ApiError as error:
            yield self._failed(error)
        except Exception:
            logger.exception("a stream failed", extra={"fields": {"request_id": self._record.request_id}})
            yield self._failed(internal_error())

    def _failed(self, error: ApiError) -> bytes:
        self._record.fail(error)
        return failed(error.body()).encode()


class EventStream(FrameStream):
    """Starts once the prompt is accepted. Leaves the subscription."""

    def __init__(
        self,
        subscription: Subscription,
        requested: Parameters,
        record: RequestRecord,
        ping_seconds: float,
        with_progress: bool,
        publish: Publish | None = None,
    ) -> None:
        """`publish` returns the URL of an image, which is sent instead of base64."""
        super().__init__(record)
        self._subscription = subscription
        self._transcript = subscription.transcript
        self._parameters = requested
        self._idle_seconds = min(ping_seconds, QUEUE_SECONDS) if with_progress else ping_seconds
        self._with_progress = with_progress
        self._publish = publish

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._subscription.leave()

    async def frames(self) -> AsyncIterator[bytes]:
        async for event in self._subscription.events(self._idle_seconds):
            yield self._idle() if event is None else await self._encoded(event)

    def _idle(self) -> bytes:
        """A ping or, where progress is wanted, the place in the queue."""
        state = self._subscription.queue_state() if self._with_progress else None
        return comment("ping") if state is None else queued(state, self._parameters).encode()

    async def _respond(self, send: Send) -> None:
        await self._subscription.prepared()
        self._record.parameters = self._parameters = self._transcript.parameters(self._parameters)
        await super()._respond(send)

    async def _encoded(self, event: Event) -> bytes:
        if isinstance(event, Timings):
            self._record.timings = event
        url = await self._publish(event) if self._publish and isinstance(event, ImageFile) else None
        frame = frame_of(event, self._parameters, self._transcript.prompt_tokens, url)
        return await offload(len(frame.image or b""), lambda: frame.encode(self._with_progress))
