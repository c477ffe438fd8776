"""A transcript as server-sent events."""

import asyncio
import base64
import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from engine.messages import StepDone
from server.generation.image_encoder import PREVIEW_FORMAT, ImageEncoder
from server.generation.parameters import Parameters
from server.generation.transcript import Event, ImageFile, Preview, Subscription, Timings
from server.observability.request_record import RequestRecord
from server.responses.json_response import server_timing, usage, warnings
from server.schemas.errors import ApiError, ClientDisconnectedError, internal_error, server_stopped
from server.transport.disconnect import unless_disconnected

logger = logging.getLogger(__name__)
ACCEPTED, PING = b": accepted\n\n", b": ping\n\n"


class EventStream(StreamingResponse):
    """All validation lies before it; an error from here on is its last event. Leaves its subscription."""

    media_type = "text/event-stream"

    def __init__(
        self,
        subscription: Subscription,
        parameters: Parameters,
        encoder: ImageEncoder,
        record: RequestRecord,
        *,
        ping_seconds: float,
        with_progress: bool,
    ) -> None:
        super().__init__(self._frames(), headers={"X-Accel-Buffering": "no"})
        self._subscription = subscription
        self._transcript = subscription.transcript
        self._parameters = parameters
        self._encoder = encoder
        self._record = record
        self._ping_seconds = ping_seconds
        self._with_progress = with_progress

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._follow(Request(scope, receive), send)
        except ClientDisconnectedError as error:
            await self._end(error, send)
        except asyncio.CancelledError:
            await self._end(server_stopped(), send)

    async def _follow(self, request: Request, send: Send) -> None:
        try:
            await unless_disconnected(request, self.stream_response(send))
        finally:
            self._subscription.leave()

    async def _end(self, error: ApiError, send: Send) -> None:
        """Wherever it was; raises `error` if that was before its begin or after its end."""
        if self._record.status == 0 or self._record.is_answered:
            raise error
        await send({"type": "http.response.body", "body": self._failed(error)})

    async def _frames(self) -> AsyncIterator[bytes]:
        yield ACCEPTED
        try:
            async for event in self._subscription.events(self._ping_seconds):
                yield PING if event is None else await self._frame(event)
        except ApiError as error:
            yield self._failed(error)
        except Exception:
            logger.exception("a stream failed", extra={"fields": {"request_id": self._record.request_id}})
            yield self._failed(internal_error())

    async def _frame(self, event: Event) -> bytes:
        match event:
            case StepDone():
                return _progress(event, self._with_progress)
            case Preview():
                return await self._encoder.run(self._partial, event)
            case ImageFile():
                return await self._encoder.run(self._completed, event)
            case Timings():
                self._record.timings = event
                return f": server-timing {server_timing(event)}\n\n".encode()

    def _partial(self, preview: Preview) -> bytes:
        index = {"partial_image_index": preview.preview_index}
        return _image("image_generation.partial_image", self._parameters, preview, PREVIEW_FORMAT, index)

    def _completed(self, picture: ImageFile) -> bytes:
        parameters = self._parameters
        last = {
            "seed": picture.seed,
            "usage": usage(self._transcript.prompt_tokens, parameters, images=1).model_dump(),
            **parameters.prompt.revised(),
            **warnings(parameters),
        }
        return _image("image_generation.completed", parameters, picture, parameters.output_format, last)

    def _failed(self, error: ApiError) -> bytes:
        self._record.fail(error)
        return _frame("error", {"type": "error", **error.body().model_dump()})


def _progress(event: StepDone, as_event: bool) -> bytes:
    if not as_event:
        return f": progress {event.image_index} {event.step}/{event.num_steps}\n\n".encode()
    kind = "image_generation.progress"
    fields = {"image_index": event.image_index, "step": event.step, "num_steps": event.num_steps}
    return _frame(kind, {"type": kind, **fields})


def _image(
    kind: str, parameters: Parameters, image: Preview | ImageFile, output_format: str, extra: dict[str, Any]
) -> bytes:
    return _frame(
        kind,
        {
            "type": kind,
            "b64_json": base64.b64encode(image.data).decode(),
            "image_index": image.image_index,
            "created_at": int(time.time()),
            "size": parameters.size,
            "quality": parameters.quality,
            "background": "opaque",
            "output_format": output_format,
            **extra,
        },
    )


def _frame(kind: str, data: dict[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode()
