"""The frames of an event stream.

A comment ends in one newline: a blank line after it would be an empty event to some parsers. All text is
ASCII, since some parsers end lines at other characters than newlines.
"""

import json
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from engine.messages import StepDone
from server.generation.image_encoder import PREVIEW_FORMAT
from server.generation.parameters import Parameters
from server.generation.transcript import Event, ImageFile, Preview, QueueState, Timings
from server.responses.images_response import server_timing, usage, warnings, with_base64
from server.schemas.errors import ErrorBody

PROGRESS = ".progress"


@dataclass(frozen=True, slots=True)
class Frame:
    """One server-sent event, or a comment, whose text is then `kind`. `image` belongs into `b64_json`."""

    kind: str
    fields: dict[str, Any] = field(default_factory=dict)
    image: bytes | None = None

    def encode(self, with_progress: bool = False, event_id: int | None = None) -> bytes:
        """Progress is a comment unless `with_progress`."""
        if not self.fields:
            return comment(self.kind)
        if self.kind.endswith(PROGRESS) and not with_progress:
            return comment("progress {image_index} {step}/{num_steps}".format(**self.fields))
        fields = {"type": self.kind, **self.fields}
        data = json.dumps(fields).encode() if self.image is None else with_base64(fields, self.image)
        head = b"" if event_id is None else b"id: %d\n" % event_id
        return b"%bevent: %b\ndata: %b\n\n" % (head, self.kind.encode(), data)


def comment(text: str) -> bytes:
    return f": {text}\n".encode()


def failed(body: ErrorBody) -> Frame:
    return Frame("error", body.model_dump())


def frame_of(event: Event, parameters: Parameters, prompt_tokens: int, url: str | None = None) -> Frame:
    """`parameters` are those of the transcript; `url` of an image replaces its base64."""
    prefix = _prefix(parameters)
    match event:
        case StepDone():
            fields = {"image_index": event.image_index, "step": event.step, "num_steps": event.num_steps}
            return Frame(prefix + PROGRESS, fields)
        case Preview():
            more: dict[str, Any] = {"partial_image_index": event.preview_index}
            return _image(
                f"{prefix}.partial_image", event, parameters, {"output_format": PREVIEW_FORMAT, **more}
            )
        case ImageFile():
            more = {
                "output_format": parameters.output_format,
                "seed": event.seed,
                "usage": usage(prompt_tokens, parameters, images=1).model_dump(),
                **parameters.prompt.revised(),
                **warnings(parameters),
            }
            return _image(f"{prefix}.completed", event, parameters, more, url)
        case Timings():
            return Frame(f"server-timing {server_timing(event)}")


def queued(state: QueueState, parameters: Parameters) -> Frame:
    """The place of a request that has not begun."""
    return Frame(f"{_prefix(parameters)}.queued", asdict(state))


def _prefix(parameters: Parameters) -> str:
    return "image_edit" if parameters.source else "image_generation"


def _image(
    kind: str,
    image: Preview | ImageFile,
    parameters: Parameters,
    more: dict[str, Any],
    url: str | None = None,
) -> Frame:
    fields = {
        **({"b64_json": ""} if url is None else {"url": url}),
        "image_index": image.image_index,
        "created_at": int(time.time()),
        "size": parameters.size,
        "quality": parameters.quality,
        "background": "opaque",
        **more,
    }
    return Frame(kind, fields, image.data if url is None else None)
