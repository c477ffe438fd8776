"""`POST /v1/captions/validate` checks a structured caption, `POST /v1/captions/expand` writes one."""

from fastapi import APIRouter, Request, Response

from server.captions.prompt import NOT_A_CAPTION, Prompt, read_prompt
from server.observability.request_record import RequestRecord
from server.offload import offload
from server.routes.image_request import image_request
from server.schemas.images import PromptFields
from server.schemas.responses import CaptionReport
from server.service import AuthenticatedCaller, InjectedService, Service
from server.transport.body import parse
from server.transport.disconnect import unless_disconnected
from server.transport.timeouts import allowed_seconds

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


@router.post("/v1/captions/expand", operation_id="expand_prompt")
async def expand_prompt(request: Request, service: InjectedService, caller: AuthenticatedCaller) -> Response:
    """Expand a plain prompt into a caption with magic prompt, without generating an image."""
    service.enter_job(request.state.record)
    seconds = allowed_seconds(request.headers, service.settings.max_request_seconds, is_stream=False)
    async with service.bodies.receive(request) as body:
        wanted = await offload(len(body), lambda: parse(body, service.request_model))
        wanted = wanted.model_copy(update={"magic_prompt": "on"})
        asked = await image_request(request, service, caller, body, wanted, seconds)
    prompt = await unless_disconnected(request, service.generations.expand(asked))
    return Response(_describe(prompt).model_dump_json(), media_type="application/json")


def _report(body: bytearray) -> CaptionReport:
    """Raises ApiError."""
    return _describe(read_prompt(parse(body, PromptFields)))


def _describe(prompt: Prompt) -> CaptionReport:
    if prompt.caption is None:
        return CaptionReport(valid=False, caption=None, prompt=None, warnings=[NOT_A_CAPTION])
    warnings = list(prompt.warnings)
    return CaptionReport(
        valid=not prompt.deviates, caption=prompt.caption, prompt=prompt.text, warnings=warnings
    )
