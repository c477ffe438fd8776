"""What image requests and jobs have in common: from a valid body to a request of the caller."""

import time

from fastapi import Request

from server.access.api_keys import Caller
from server.generation.generations import GenerationRequest
from server.generation.idempotency import Fingerprint
from server.generation.parameters import resolve
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
    headers, record = request.headers, request.state.record
    assert isinstance(record, RequestRecord)
    model = service.model_of(caller)
    opt_outs = OptOuts.of(wanted, caller, service.integrations.configured)
    parameters = await offload(len(body), lambda: resolve(wanted, model, accepted))
    record.parameters, record.priority = parameters, caller.priority(headers)
    key = headers.get("idempotency-key")
    return GenerationRequest(
        caller=caller,
        parameters=parameters,
        opt_outs=opt_outs,
        priority=record.priority,
        deadline=time.monotonic() + seconds,
        fingerprint=None if key is None else Fingerprint.of(caller.name, key, body, parameters.output_format),
    )
