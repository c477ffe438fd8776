"""`POST /v1/images`: the whole path of a request, from bytes to bytes."""

import time
import uuid
from dataclasses import dataclass, replace

from fastapi import APIRouter, Request, Response

from engine.errors import EngineError
from engine.messages import EngineRequest
from server import answers, metadata
from server.auth import Caller
from server.beside import beside
from server.body import parse
from server.choices import Choices, choose
from server.deadlines import allowed_seconds
from server.disconnect import unless_disconnected
from server.errors import from_engine
from server.generation import Course, Generation
from server.idempotency import Fingerprint
from server.images import MEDIA_TYPES
from server.negotiation import Kind, negotiate
from server.parameters import Parameters, resolve
from server.record import Record
from server.safety import Safety
from server.service import Service
from server.streaming import EventStream
from server.treatment import Treatment

router = APIRouter()


@router.post("/v1/images", operation_id="create_image")
@router.post("/v1/images/generations", operation_id="create_image_openai")
async def create_image(request: Request) -> Response:
    """Make images from a prompt: as JSON, as one image file, or as server-sent events."""
    service: Service = request.app.state.service
    record: Record = request.state.record
    caller = service.authenticate(request, record)
    service.enter(record)
    async with service.bodies.receive(request) as body:
        order = await _understand(request, service, caller, body)
    generation = _join(request, service, caller, order)
    record.generation_id = generation.request.request_id
    await _prepared(request, generation)
    record.parameters = generation.parameters
    if order.kind == "events":
        return EventStream(
            generation,
            service.encoder,
            record,
            ping_seconds=service.settings.ping_seconds,
            with_progress=order.with_progress,
        )
    try:
        result = await unless_disconnected(request, answers.collect(generation))
        return await _whole(service, record, generation, result, order.kind == "image")
    finally:
        generation.leave()


@dataclass(frozen=True, slots=True)
class _Order:
    """A request understood: nothing of its body is left in it."""

    kind: Kind
    parameters: Parameters
    choices: Choices
    token_ids: tuple[int, ...]
    fingerprint: Fingerprint | None
    with_progress: bool


async def _understand(request: Request, service: Service, caller: Caller, body: bytearray) -> _Order:
    """Raises ApiError."""
    record: Record = request.state.record
    wanted = await beside(len(body), lambda: parse(body, service.request_model))
    kind, output_format = negotiate(request.headers, wanted)
    choices = choose(wanted, caller, service.safety)
    resolved = await beside(len(body), lambda: resolve(wanted, service.engine.config, output_format))
    parameters = _without_previews(resolved, choices, service.safety)
    record.mode, record.parameters = kind, parameters
    token_ids = await _tokenize(service, parameters.prompt.text)
    key = request.headers.get("idempotency-key")
    fingerprint = (
        Fingerprint.of(caller.name, key, body, parameters.output_format) if key is not None else None
    )
    return _Order(kind, parameters, choices, token_ids, fingerprint, bool(wanted.progress))


def _without_previews(parameters: Parameters, choices: Choices, safety: Safety) -> Parameters:
    """Previews of an image that is going to be judged would leave before it is."""
    if not parameters.num_previews or safety.sends_previews or not choices.is_moderated:
        return parameters
    prompt = parameters.prompt.warned("previews_off", "Images are moderated here, so there are no previews.")
    return replace(parameters, prompt=prompt, num_previews=0)


async def _prepared(request: Request, generation: Generation) -> None:
    """Raises ApiError, and leaves the generation then."""
    try:
        await unless_disconnected(request, generation.prepared())
    except BaseException:
        generation.leave()
        raise


async def _tokenize(service: Service, prompt: str) -> tuple[int, ...]:
    """Raises ApiError if the prompt has too many tokens."""
    try:
        return await beside(len(prompt), lambda: service.engine.tokenize(prompt))
    except EngineError as error:
        raise from_engine(error) from error


def _join(request: Request, service: Service, caller: Caller, order: _Order) -> Generation:
    """The generation that answers: one under the same Idempotency-Key, or a new one. Leave it when done.

    Nothing is awaited in here, so two requests with one key cannot both find none.
    """
    generation = service.kept.find(order.fingerprint) if order.fingerprint else None
    if generation is None:
        engine_request = _engine_request(request, service, caller, order.parameters, order.token_ids)
        generation = _start(service, caller, order.parameters, order.choices, engine_request)
        if order.fingerprint:
            service.kept.keep(order.fingerprint, generation)
    generation.join()
    return generation


def _engine_request(
    request: Request, service: Service, caller: Caller, parameters: Parameters, token_ids: tuple[int, ...]
) -> EngineRequest:
    priority = caller.priority(request.headers)
    request.state.record.priority = priority
    seconds = allowed_seconds(request.headers, service.settings.max_request_seconds)
    return EngineRequest(
        request_id="img-" + uuid.uuid4().hex,
        token_ids=token_ids,
        width=parameters.width,
        height=parameters.height,
        seeds=parameters.seeds,
        sampling=parameters.sampling,
        num_previews=parameters.num_previews,
        deadline=time.monotonic() + seconds,
        priority=priority,
    )


def _start(
    service: Service, caller: Caller, parameters: Parameters, choices: Choices, engine_request: EngineRequest
) -> Generation:
    """Admit the request and start to generate. Raises ApiError 429."""
    slot = service.admission.admit(engine_request, caller)
    course = Course(
        renew=lambda renewed: service.admission.renew(slot, renewed),
        describe=lambda drawn: metadata.describe(drawn, service.engine.config, service.settings.embed_prompt),
    )
    treatment = Treatment(service.safety, choices, service.encoder, lambda prompt: _tokenize(service, prompt))
    generation = Generation(service.engine, service.encoder, slot, parameters, treatment, course)
    generation.task.add_done_callback(lambda _: service.admission.release(slot))
    return generation


async def _whole(
    service: Service, record: Record, generation: Generation, result: answers.Result, raw: bool
) -> Response:
    record.finished = result.finished
    headers = {"Server-Timing": answers.server_timing(result.finished)}
    if raw:
        picture = result.pictures[0]
        media_type = MEDIA_TYPES[generation.parameters.output_format]
        headers |= {"X-Seed": str(picture.seed), **answers.warning_header(generation.parameters)}
        return Response(picture.data, media_type=media_type, headers=headers)
    model = service.engine.config.model_id
    body = await answers.json_body(generation, result.pictures, model, service.encoder)
    return Response(body, media_type="application/json", headers=headers)
