"""A response of server-sent events.

A comment ends in one newline: a blank line after it would be an empty event to some parsers. All text is
ASCII, since some parsers end lines at other characters than newlines.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from engine.messages import StepDone
from server.generation.image_encoder import PREVIEW_FORMAT
from server.generation.parameters import Parameters
from server.generation.transcript import Event, ImageFile, Preview, Subscription, Timings
from server.observability.request_record import RequestRecord
from server.offload import offload
from server.responses.images_response import server_timing, usage, warnings, with_base64
from server.schemas.errors import ApiError, ClientDisconnectedError, internal_error, server_stopped
from server.transport.disconnect import unless_disconnected

logger = logging.getLogger(__name__)


class EventStream(StreamingResponse):
    """Starts once the prompt is accepted; an error after that is its last event. Leaves the subscription."""

    media_type = "text/event-stream"

    def __init__(
        self,
        subscription: Subscription,
        requested: Parameters,
        record: RequestRecord,
        ping_seconds: float,
        with_progress: bool,
    ) -> None:
        super().__init__(self._frames(), headers={"X-Accel-Buffering": "no"})
        self._subscription = subscription
        self._transcript = subscription.transcript
        self._parameters = requested
        self._record = record
        self._ping_seconds = ping_seconds
        self._with_progress = with_progress

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_disconnected(Request(scope, receive), self._respond(send))
        except ClientDisconnectedError as error:
            await self._end(error, send)
        except asyncio.CancelledError:
            await self._end(server_stopped(), send)
        finally:
            self._subscription.leave()

    async def _respond(self, send: Send) -> None:
        await self._subscription.prepared()
        self._record.parameters = self._parameters = self._transcript.parameters(self._parameters)
        await self.stream_response(send)

    async def _end(self, error: ApiError, send: Send) -> None:
        """Send the error as the last event. Raises it before the first byte and after the last."""
        if self._record.status == 0 or self._record.is_answered:
            raise error
        await send({"type": "http.response.body", "body": self._failed(error)})

    async def _frames(self) -> AsyncIterator[bytes]:
        yield _comment("accepted")
        try:
            async for event in self._subscription.events(self._ping_seconds):
                yield _comment("ping") if event is None else await self._frame(event)
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
                return await offload(len(event.data), lambda: self._partial(event))
            case ImageFile():
                return await offload(len(event.data), lambda: self._completed(event))
            case Timings():
                self._record.timings = event
                return _comment(f"server-timing {server_timing(event)}")

    def _partial(self, preview: Preview) -> bytes:
        index = {"partial_image_index": preview.preview_index}
        return self._image("image_generation.partial_image", preview, PREVIEW_FORMAT, index)

    def _completed(self, image: ImageFile) -> bytes:
        parameters = self._parameters
        last = {
            "seed": image.seed,
            "usage": usage(self._transcript.prompt_tokens, parameters, images=1).model_dump(),
            **parameters.prompt.revised(),
            **warnings(parameters),
        }
        return self._image("image_generation.completed", image, parameters.output_format, last)

    def _image(
        self, kind: str, image: Preview | ImageFile, output_format: str, more: dict[str, Any]
    ) -> bytes:
        fields = {
            "type": kind,
            "b64_json": "",
            "image_index": image.image_index,
            "created_at": int(time.time()),
            "size": self._parameters.size,
            "quality": self._parameters.quality,
            "background": "opaque",
            "output_format": output_format,
            **more,
        }
        return _event(kind, with_base64(fields, image.data))

    def _failed(self, error: ApiError) -> bytes:
        self._record.fail(error)
        return _json_event("error", error.body().model_dump())


def _progress(event: StepDone, as_event: bool) -> bytes:
    if not as_event:
        return _comment(f"progress {event.image_index} {event.step}/{event.num_steps}")
    fields = {"image_index": event.image_index, "step": event.step, "num_steps": event.num_steps}
    return _json_event("image_generation.progress", fields)


def _json_event(kind: str, fields: dict[str, Any]) -> bytes:
    return _event(kind, json.dumps({"type": kind, **fields}).encode())


def _event(kind: str, data: bytes) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)


def _comment(text: str) -> bytes:
    return f": {text}\n".encode()
