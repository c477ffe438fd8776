"""`POST /v1/captions/validate`: checks a structured caption."""

from fastapi import APIRouter, Request, Response

from server.captions.prompt import NOT_A_CAPTION, read_prompt
from server.observability.request_record import RequestRecord
from server.offload import offload
from server.schemas.images import PromptFields
from server.schemas.responses import CaptionReport
from server.service import Service
from server.transport.body import parse

router = APIRouter()


@router.post("/v1/captions/validate", operation_id="validate_caption")
async def validate_caption(request: Request) -> Response:
    """Validate and normalize a structured caption without generating an image."""
    service: Service = request.app.state.service
    record: RequestRecord = request.state.record
    service.authenticate(request, record)
    async with service.bodies.receive(request) as body:
        report = await offload(len(body), lambda: _report(body).model_dump_json())
    return Response(report, media_type="application/json")


def _report(body: bytearray) -> CaptionReport:
    """Raises ApiError."""
    prompt = read_prompt(parse(body, PromptFields))
    if prompt.caption is None:
        return CaptionReport(valid=False, caption=None, prompt=None, warnings=[NOT_A_CAPTION])
    warnings = list(prompt.warnings)
    return CaptionReport(
        valid=not prompt.deviates, caption=prompt.caption, prompt=prompt.text, warnings=warnings
    )
