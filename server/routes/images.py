"""`POST /v1/images`, its edits and variations: parse, submit, respond."""

from fastapi import APIRouter, Request, Response

from server.access.api_keys import Caller
from server.edits.editing import read
from server.generation.generations import GenerationRequest
from server.generation.transcript import ImageFile, Subscription
from server.observability.request_record import RequestRecord
from server.offload import offload
from server.responses.event_stream import EventStream
from server.responses.images_response import Publish, images_response
from server.responses.negotiation import ResponseFormat, negotiate
from server.routes.image_request import edit_request, image_request
from server.routes.jobs import as_preferred, create_edit_job, create_job, is_wanted_as_job
from server.schemas.images import ImageRequest
from server.schemas.responses import ImageEstimate
from server.service import AuthenticatedCaller, InjectedService, Service
from server.transport.body import parse
from server.transport.timeouts import allowed_seconds, ping_seconds

router = APIRouter()


@router.post("/v1/images", operation_id="create_image")
@router.post("/v1/images/generations", operation_id="create_image_openai")
async def create_image(request: Request, service: InjectedService, caller: AuthenticatedCaller) -> Response:
    """Create images from a prompt. The response is JSON, one image file, or server-sent events; with
    `Prefer: respond-async`, a job."""
    if is_wanted_as_job(request, service):
        return as_preferred(await create_job(request, service, caller))
    service.enter(request.state.record)
    async with service.bodies.receive(request) as body:
        response_format, submitted = await _read(request, service, caller, body)
    return await _respond(request, service, response_format, submitted)


@router.post("/v1/images/edits", operation_id="edit_image")
async def edit_image(request: Request, service: InjectedService, caller: AuthenticatedCaller) -> Response:
    """Create images from an image and a prompt. The response is that of `POST /v1/images`."""
    return await _edit(request, service, caller, is_variation=False)


@router.post("/v1/images/variations", operation_id="vary_image")
async def vary_image(request: Request, service: InjectedService, caller: AuthenticatedCaller) -> Response:
    """Create images that resemble an image: an edit with a neutral prompt and less strength."""
    return await _edit(request, service, caller, is_variation=True)


async def _edit(request: Request, service: Service, caller: Caller, is_variation: bool) -> Response:
    service.edits.check()
    if is_wanted_as_job(request, service):
        return as_preferred(await create_edit_job(request, service, caller, is_variation))
    service.enter(request.state.record)
    async with service.edits.uploads.receive(request) as payload:
        wanted = read(payload, service.edits.request_model, is_variation)
        response_format, seconds = _negotiate(request, service, wanted)
        accepted = response_format.output_format
        submitted = await edit_request(request, service, caller, payload, wanted, seconds, accepted)
    service.edits.uploads.hold_image(request.state.record, submitted.parameters)
    return await _respond(request, service, response_format, submitted)


async def _respond(
    request: Request, service: Service, response_format: ResponseFormat, submitted: GenerationRequest
) -> Response:
    record: RequestRecord = request.state.record
    subscription = await service.generations.submit(submitted)
    record.generation_id = subscription.transcript.request_id
    publish = _publish(service, request, subscription, submitted) if response_format.as_url else None
    if response_format.kind == "events":
        ping = ping_seconds(request.headers, service.settings.ping_seconds)
        with_progress = response_format.with_progress
        return EventStream(subscription, submitted.parameters, record, ping, with_progress, publish)
    model = service.engine.config.model_id
    kind, parameters = response_format.kind, submitted.parameters
    return await images_response(kind, request, subscription, parameters, model, publish)


@router.post("/v1/images/estimate", operation_id="estimate_image")
async def estimate_image(
    request: Request, service: InjectedService, caller: AuthenticatedCaller
) -> ImageEstimate:
    """Predict the time of an image request, without running it."""
    service.lifecycle.check_open()
    async with service.bodies.receive(request) as body:
        wanted = await offload(len(body), lambda: parse(body, service.request_model))
        seconds = service.settings.max_request_seconds
        asked = await image_request(request, service, caller, body, wanted, seconds)
    forecast = await service.generations.forecast(asked)
    return ImageEstimate(
        seconds=round(forecast.total, 3),
        ahead_seconds=round(forecast.ahead, 3),
        device_seconds=round(forecast.own, 3),
    )


def _publish(
    service: Service, request: Request, subscription: Subscription, submitted: GenerationRequest
) -> Publish:
    """Stores an image of the response and returns its URL."""
    results, base_url = service.open_store(), str(request.base_url)
    owner, output_format = subscription.transcript.request_id, submitted.parameters.output_format

    async def publish(image: ImageFile) -> str:
        return await results.publish(owner, image.image_index, output_format, image.data, base_url)

    return publish


async def _read(
    request: Request, service: Service, caller: Caller, body: bytearray
) -> tuple[ResponseFormat, GenerationRequest]:
    """Raises ApiError."""
    wanted = await offload(len(body), lambda: parse(body, service.request_model))
    response_format, seconds = _negotiate(request, service, wanted)
    accepted = response_format.output_format
    return response_format, await image_request(request, service, caller, body, wanted, seconds, accepted)


def _negotiate(request: Request, service: Service, wanted: ImageRequest) -> tuple[ResponseFormat, float]:
    """The format of the response, and the seconds that the client waits for it. Raises ApiError."""
    response_format = negotiate(request.headers, wanted)
    request.state.record.mode = response_format.kind
    if response_format.as_url:
        service.open_store()
    is_stream = response_format.kind == "events"
    return response_format, allowed_seconds(request.headers, service.settings.max_request_seconds, is_stream)
