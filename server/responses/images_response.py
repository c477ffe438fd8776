"""Responses that wait for the last image: JSON, or one image file."""

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fastapi import Request, Response

from server.generation.image_encoder import MEDIA_TYPES
from server.generation.parameters import Parameters
from server.generation.transcript import ImageFile, Subscription, Timings, Transcript
from server.observability.request_record import RequestRecord
from server.offload import offload
from server.responses.negotiation import Kind
from server.schemas.responses import ImageData, ImagesResponse, InputTokensDetails, Usage
from server.transport.disconnect import unless_disconnected

IMAGE_TOKEN_PIXELS = 16 * 16
Publish = Callable[[ImageFile], Awaitable[str]]


async def images_response(
    kind: Kind,
    request: Request,
    subscription: Subscription,
    requested: Parameters,
    model: str,
    publish: Publish | None,
) -> Response:
    """Wait for the images, then leave the subscription. `publish` returns the URL of an image, where it is
    sent instead of base64. Raises ApiError."""
    record: RequestRecord = request.state.record
    transcript = subscription.transcript
    try:
        urls = await unless_disconnected(request, _finished(subscription, publish))
    finally:
        subscription.leave()
        record.parameters = parameters = transcript.parameters(requested)
    record.timings = transcript.timings
    headers = {"Server-Timing": server_timing(transcript.timings)}
    if kind == "image":
        return _file_response(transcript.images[0], parameters, headers)
    size = sum(len(image.data) for image in transcript.images)
    body = await offload(size, lambda: _json_body(transcript, parameters, model, urls))
    return Response(body, media_type="application/json", headers=headers)


async def _finished(subscription: Subscription, publish: Publish | None) -> Sequence[str | None]:
    """Wait for the images. Returns their URLs; None for each without `publish`."""
    await subscription.done()
    images = subscription.transcript.images
    return await asyncio.gather(*map(publish, images)) if publish else [None] * len(images)


def _file_response(image: ImageFile, parameters: Parameters, headers: dict[str, str]) -> Response:
    headers |= {"X-Seed": str(image.seed), **_warning_header(parameters)}
    return Response(image.data, media_type=MEDIA_TYPES[parameters.output_format], headers=headers)


def _json_body(
    transcript: Transcript, parameters: Parameters, model: str, urls: Sequence[str | None]
) -> bytes:
    images = transcript.images
    response = ImagesResponse(
        id=transcript.request_id,
        created=transcript.created,
        model=model,
        data=[],
        output_format=parameters.output_format,
        quality=parameters.quality,
        size=parameters.size,
        background="opaque",
        usage=usage(transcript.prompt_tokens, parameters, len(images)),
        **warnings(parameters),
    )
    data = b",".join(_image_json(image, url, parameters) for image, url in zip(images, urls, strict=True))
    return _compact(response.model_dump(exclude_unset=True)).replace(b'"data":[]', b'"data":[%b]' % data, 1)


def _image_json(image: ImageFile, url: str | None, parameters: Parameters) -> bytes:
    source = {"b64_json": ""} if url is None else {"url": url}
    data = ImageData(**source, seed=image.seed, **parameters.prompt.revised())
    fields = data.model_dump(exclude_unset=True)
    return with_base64(fields, image.data) if url is None else _compact(fields)


def with_base64(fields: dict[str, Any], data: bytes) -> bytes:
    """The fields as JSON, with `data` in place of the empty `b64_json`: base64 needs no escaping, so the
    megabytes do not go through the JSON encoder."""
    filled = b'"b64_json":"%b"' % base64.b64encode(data)
    return _compact(fields).replace(b'"b64_json":""', filled, 1)


def _compact(fields: dict[str, Any]) -> bytes:
    """JSON without spaces, in ASCII: some clients read it as Latin-1 or split lines at U+2028."""
    return json.dumps(fields, separators=(",", ":")).encode()


def usage(prompt_tokens: int, parameters: Parameters, images: int) -> Usage:
    """Tokens of the prompt, and one token per 16x16 pixels of the images, also of that of an edit."""
    made = images * parameters.width * parameters.height // IMAGE_TOKEN_PIXELS
    sent = parameters.width * parameters.height // IMAGE_TOKEN_PIXELS if parameters.source else 0
    return Usage(
        input_tokens=prompt_tokens + sent,
        input_tokens_details=InputTokensDetails(image_tokens=sent, text_tokens=prompt_tokens),
        output_tokens=made,
        total_tokens=prompt_tokens + sent + made,
    )


def warnings(parameters: Parameters) -> dict[str, Any]:
    """The field `warnings`, if there are any."""
    faults = [fault.model_dump() for fault in parameters.prompt.warnings]
    return {"warnings": faults} if faults else {}


def _warning_header(parameters: Parameters) -> dict[str, str]:
    """Each warning's code once."""
    codes = dict.fromkeys(fault.code for fault in parameters.prompt.warnings)
    return {"X-Warnings": ", ".join(codes)} if codes else {}


def server_timing(timings: Timings) -> str:
    return ", ".join(f"{name};dur={seconds * 1000:.1f}" for name, seconds in timings.stages().items())
