"""A generation as server-sent events."""

import base64
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from engine.messages import StepDone
from server.answers import server_timing, usage
from server.errors import ApiError, internal_error
from server.generation import Event, Finished, Generation, Picture, Preview
from server.images import PREVIEW_FORMAT, ImageEncoder

ACCEPTED, PING = b": accepted\n\n", b": ping\n\n"


async def events(
    generation: Generation, encoder: ImageEncoder, ping_seconds: float, with_progress: bool
) -> AsyncIterator[bytes]:
    """The whole stream; an error is its last event. All validation lies before it."""
    yield ACCEPTED
    try:
        async for event in generation.follow(ping_seconds):
            yield PING if event is None else await _render(encoder, generation, event, with_progress)
    except ApiError as error:
        yield _frame("error", {"type": "error", **error.body().model_dump()})
    except Exception:
        yield _frame("error", {"type": "error", **internal_error().body().model_dump()})
        raise


async def _render(encoder: ImageEncoder, generation: Generation, event: Event, with_progress: bool) -> bytes:
    match event:
        case StepDone():
            return _progress(event, with_progress)
        case Preview():
            return await encoder.run(_partial, generation, event)
        case Picture():
            return await encoder.run(_completed, generation, event)
        case Finished():
            return f": server-timing {server_timing(event)}\n\n".encode()


def _progress(event: StepDone, as_event: bool) -> bytes:
    if not as_event:
        return f": progress {event.image_index} {event.step}/{event.num_steps}\n\n".encode()
    kind = "image_generation.progress"
    fields = {"image_index": event.image_index, "step": event.step, "num_steps": event.num_steps}
    return _frame(kind, {"type": kind, **fields})


def _partial(generation: Generation, preview: Preview) -> bytes:
    index = {"partial_image_index": preview.preview_index}
    return _image("image_generation.partial_image", generation, preview, PREVIEW_FORMAT, index)


def _completed(generation: Generation, picture: Picture) -> bytes:
    last = {"seed": picture.seed, "usage": usage(generation, images=1).model_dump()}
    return _image(
        "image_generation.completed", generation, picture, generation.parameters.output_format, last
    )


def _image(
    kind: str, generation: Generation, image: Preview | Picture, output_format: str, extra: dict[str, Any]
) -> bytes:
    parameters = generation.parameters
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
