"""A transcript to bytes on the wire: JSON or one raw image; server-sent events are in `streaming`."""

import base64
import json
from dataclasses import dataclass
from typing import Any

from engine.messages import StageTimes
from server.captions.prompt import Prompt
from server.generation.image_encoder import ImageEncoder
from server.generation.parameters import Parameters
from server.generation.transcript import ImageFile, Subscription, Timings, Transcript
from server.schemas.images import InputTokensDetails, Usage

IMAGE_TOKEN_PIXELS = 16 * 16


@dataclass(frozen=True, slots=True)
class Result:
    """A request that came to its end."""

    pictures: list[ImageFile]
    finished: Timings


async def collect(subscription: Subscription) -> Result:
    """Wait for the last image. Raises ApiError."""
    pictures: list[ImageFile] = []
    finished = Timings(StageTimes(0, 0, 0, 0), 0)
    async for event in subscription.events():
        if isinstance(event, ImageFile):
            pictures.append(event)
        elif isinstance(event, Timings):
            finished = event
    return Result(sorted(pictures, key=lambda picture: picture.image_index), finished)


def usage(prompt_tokens: int, parameters: Parameters, images: int) -> Usage:
    """Tokens of the prompt, and one token per 16x16 pixels made."""
    text = prompt_tokens
    made = images * parameters.width * parameters.height // IMAGE_TOKEN_PIXELS
    return Usage(
        input_tokens=text,
        input_tokens_details=InputTokensDetails(image_tokens=0, text_tokens=text),
        output_tokens=made,
        total_tokens=text + made,
    )


async def json_body(
    transcript: Transcript,
    parameters: Parameters,
    pictures: list[ImageFile],
    model: str,
    encoder: ImageEncoder,
) -> bytes:
    """The ImagesResponse. Written off the event loop: images are megabytes."""
    tail = {
        "id": transcript.request_id,
        "created": transcript.created,
        "model": model,
        "output_format": parameters.output_format,
        "quality": parameters.quality,
        "size": parameters.size,
        "background": "opaque",
        "usage": usage(transcript.prompt_tokens, parameters, len(pictures)).model_dump(),
        **warnings(parameters),
    }
    data = [await encoder.run(_image_json, picture, parameters.prompt) for picture in pictures]
    return b'{"data":[' + b",".join(data) + b"]," + json.dumps(tail).encode()[1:]


def _image_json(picture: ImageFile, prompt: Prompt) -> bytes:
    # Base64 needs no escaping, so the megabytes are joined instead of going through json.
    rest = json.dumps({"seed": picture.seed, **prompt.revised()}).encode()
    return b'{"b64_json":"%b",%b' % (base64.b64encode(picture.data), rest[1:])


def warnings(parameters: Parameters) -> dict[str, Any]:
    """The answer's field, if there are any."""
    faults = [fault.model_dump() for fault in parameters.prompt.warnings]
    return {"warnings": faults} if faults else {}


def warning_header(parameters: Parameters) -> dict[str, str]:
    """Their codes, each once, where the answer is an image."""
    codes = dict.fromkeys(fault.code for fault in parameters.prompt.warnings)
    return {"X-Warnings": ", ".join(codes)} if codes else {}


def server_timing(finished: Timings) -> str:
    return ", ".join(f"{name};dur={seconds * 1000:.1f}" for name, seconds in finished.stages().items())
