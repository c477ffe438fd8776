"""What image requests, edits and jobs have in common: from a valid body to a request of the caller."""

import asyncio
import time

from fastapi import Request

from server.access.api_keys import Caller
from server.edits.payload import Payload
from server.edits.request import EditRequest
from server.generation.generations import GenerationRequest
from server.generation.idempotency import Fingerprint
from server.generation.parameters import Parameters, resolve
from server.generation.processing import OptOuts
from server.observability.request_record import RequestRecord
from server.offload import offload
from server.schemas.images import ImageRequest, OutputFormat
from server.service import Service


async def image_request(
    request: Request,
    service: Service,
    caller: Caller,
    body: bytearray,
    wanted: ImageRequest,
    seconds: float,
    accepted: OutputFormat | None = None,
) -> GenerationRequest:
    """Resolve `wanted`, which `body` holds, with a deadline in `seconds`. `accepted` is the format of
    Accept. Raises ApiError."""
    opt_outs, model = OptOuts.of(wanted, caller, service.integrations.configured), service.model_of(caller)
    parameters = await offload(len(body), lambda: resolve(wanted, model, accepted))
    return _of_caller(request, caller, body, parameters, opt_outs, seconds)


async def edit_request(
    request: Request,
    service: Service,
    caller: Caller,
    payload: Payload,
    wanted: EditRequest,
    seconds: float,
    accepted: OutputFormat | None = None,
) -> GenerationRequest:
    """As `image_request`, with the image in `payload`, which is decoded."""
    opt_outs = OptOuts.of(wanted, caller, service.integrations.configured)
    parameters = await service.edits.parameters(payload, wanted, service.model_of(caller), accepted)
    content = await asyncio.to_thread(payload.content) if "idempotency-key" in request.headers else b""
    return _of_caller(request, caller, content, parameters, opt_outs, seconds)


def _of_caller(
    request: Request,
    caller: Caller,
    content: bytes | bytearray,
    parameters: Parameters,
    opt_outs: OptOuts,
    seconds: float,
) -> GenerationRequest:
    """`content` is what all requests with one Idempotency-Key share."""
    headers, record = request.headers, request.state.record
    assert isinstance(record, RequestRecord)
    record.parameters, record.priority = parameters, caller.priority(headers)
    key, output_format = headers.get("idempotency-key"), parameters.output_format
    return GenerationRequest(
        caller=caller,
        parameters=parameters,
        opt_outs=opt_outs,
        priority=record.priority,
        deadline=time.monotonic() + seconds,
        fingerprint=None if key is None else Fingerprint.of(caller.name, key, content, output_format),
    )
