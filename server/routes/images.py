"""`POST /v1/images`: parse, submit, respond."""

from fastapi import APIRouter, Request, Response

from server.access.api_keys import Caller
from server.generation.generations import GenerationRequest
from server.generation.transcript import ImageFile, Subscription
from server.observability.request_record import RequestRecord
from server.offload import offload
from server.responses.event_stream import EventStream
from server.responses.images_response import Publish, images_response
from server.responses.negotiation import ResponseFormat, negotiate
from server.routes.image_request import image_request
from server.routes.jobs import create_job, is_wanted_as_job
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
        response = await create_job(request, service, caller)
        response.headers["Preference-Applied"] = "respond-async"
        return response
    record: RequestRecord = request.state.record
    service.enter(record)
    async with service.bodies.receive(request) as body:
        response_format, submitted = await _read(request, service, caller, body)
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
    response_format = negotiate(request.headers, wanted)
    request.state.record.mode = response_format.kind
    if response_format.as_url:
        service.open_store()
    is_stream = response_format.kind == "events"
    seconds = allowed_seconds(request.headers, service.settings.max_request_seconds, is_stream)
    accepted = response_format.output_format
    return response_format, await image_request(request, service, caller, body, wanted, seconds, accepted)
