"""`POST /v1/images`, the whole path of a request from bytes to bytes."""

import time
import uuid

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from engine.errors import EngineError
from engine.messages import EngineRequest
from server import answers, metadata
from server.body import parse, read_body
from server.disconnect import unless_disconnected
from server.errors import ApiError, from_engine
from server.generation import Generation
from server.negotiation import negotiate
from server.parameters import Parameters, resolve
from server.service import Service
from server.streaming import events

router = APIRouter()


@router.post("/v1/images")
@router.post("/v1/images/generations", operation_id="create_image_openai")
async def create_image(request: Request) -> Response:
    """Make images from a prompt."""
    service: Service = request.app.state.service
    settings = service.settings
    if not service.engine.is_ready:
        raise ApiError(503, "model_not_ready", "The model is loading.", retry_after=5)
    body = await read_body(request, settings.max_body_bytes, settings.body_timeout_seconds)
    wanted = parse(body, service.request_model)
    answer = negotiate(request.headers.get("accept"), wanted)
    parameters = resolve(wanted, service.engine.config)
    try:
        token_ids = service.engine.tokenize(parameters.prompt)
    except EngineError as error:
        raise from_engine(error) from error
    engine_request = _engine_request(parameters, token_ids, time.monotonic() + settings.max_request_seconds)
    facts = metadata.describe(parameters, service.engine.config, settings.embed_prompt)
    generation = Generation(service.engine, service.encoder, engine_request, parameters, facts)
    generation.join()
    if answer.kind == "events":
        return EventStream(service, generation, bool(wanted.progress))
    try:
        return await unless_disconnected(request.receive, _whole(service, generation, answer.kind == "image"))
    finally:
        generation.leave()


class EventStream(StreamingResponse):
    """Leaves its generation however it ends."""

    def __init__(self, service: Service, generation: Generation, with_progress: bool) -> None:
        body = events(generation, service.encoder, service.settings.ping_seconds, with_progress)
        super().__init__(body, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_disconnected(receive, self.stream_response(send))
        finally:
            self._generation.leave()


async def _whole(service: Service, generation: Generation, raw: bool) -> Response:
    result = await answers.collect(generation)
    headers = {"Server-Timing": answers.server_timing(result.finished)}
    if raw:
        picture = result.pictures[0]
        media_type = answers.MEDIA_TYPES[generation.parameters.output_format]
        return Response(picture.data, media_type=media_type, headers=headers | {"X-Seed": str(picture.seed)})
    model = service.engine.config.model_id
    body = await answers.json_body(generation, result.pictures, model, service.encoder)
    return Response(body, media_type="application/json", headers=headers)


def _engine_request(parameters: Parameters, token_ids: tuple[int, ...], deadline: float) -> EngineRequest:
    return EngineRequest(
        request_id="img-" + uuid.uuid4().hex,
        token_ids=token_ids,
        width=parameters.width,
        height=parameters.height,
        seeds=parameters.seeds,
        sampling=parameters.sampling,
        num_previews=parameters.num_previews,
        deadline=deadline,
    )
