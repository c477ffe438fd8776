"""`POST /v1/images`: the whole path of a request, from bytes to bytes."""

import time
import uuid
from dataclasses import dataclass, replace

from fastapi import APIRouter, Request, Response

from engine.errors import EngineError
from engine.request import EngineRequest, Priority
from server.access.api_keys import Caller
from server.access.opt_outs import OptOuts, choose
from server.generation import metadata
from server.generation.generation import Course, Generation
from server.generation.idempotency import Fingerprint
from server.generation.image_encoder import MEDIA_TYPES
from server.generation.parameters import Parameters, resolve
from server.generation.processing import Processing
from server.generation.transcript import Subscription, Transcript
from server.integrations import Integrations
from server.observability.request_record import RequestRecord
from server.offload import offload
from server.responses import json_response as answers
from server.responses.event_stream import EventStream
from server.responses.negotiation import Kind, negotiate
from server.schemas.errors import from_engine
from server.service import Service
from server.transport.body import parse
from server.transport.disconnect import unless_disconnected
from server.transport.timeouts import allowed_seconds, ping_seconds

router = APIRouter()


@router.post("/v1/images", operation_id="create_image")
@router.post("/v1/images/generations", operation_id="create_image_openai")
async def create_image(request: Request) -> Response:
    """Make images from a prompt: as JSON, as one image file, or as server-sent events."""
    service: Service = request.app.state.service
    record: RequestRecord = request.state.record
    caller = service.authenticate(request, record)
    service.enter(record)
    async with service.bodies.receive(request) as body:
        order = await _understand(request, service, caller, body)
    subscription = _join(service, caller, order, _terms(request, service, caller, order.kind))
    record.generation_id = subscription.transcript.request_id
    await _prepared(request, subscription)
    record.parameters = parameters = subscription.transcript.parameters(order.parameters)
    if order.kind == "events":
        return EventStream(
            subscription,
            parameters,
            service.encoder,
            record,
            ping_seconds=ping_seconds(request.headers, service.settings.ping_seconds),
            with_progress=order.with_progress,
        )
    try:
        result = await unless_disconnected(request, answers.collect(subscription))
        record.timings = result.finished
        if order.kind == "image":
            return _raw(result, parameters)
        return await _json(service, subscription.transcript, result, parameters)
    finally:
        subscription.leave()


@dataclass(frozen=True, slots=True)
class _Order:
    """A request understood: nothing of its body is left in it."""

    kind: Kind
    parameters: Parameters
    opt_outs: OptOuts
    token_ids: tuple[int, ...]
    fingerprint: Fingerprint | None
    with_progress: bool


@dataclass(frozen=True, slots=True)
class _Terms:
    """When the client stops waiting, and how urgent its request is."""

    deadline: float
    priority: Priority


async def _understand(request: Request, service: Service, caller: Caller, body: bytearray) -> _Order:
    """Raises ApiError."""
    record: RequestRecord = request.state.record
    wanted = await offload(len(body), lambda: parse(body, service.request_model))
    kind, output_format = negotiate(request.headers, wanted)
    opt_outs = choose(wanted, caller, service.integrations)
    resolved = await offload(len(body), lambda: resolve(wanted, service.engine.config, output_format))
    parameters = _without_previews(resolved, opt_outs, service.integrations)
    record.mode, record.parameters = kind, parameters
    token_ids = await _tokenize(service, parameters.prompt.text)
    key = request.headers.get("idempotency-key")
    fingerprint = (
        Fingerprint.of(caller.name, key, body, parameters.output_format) if key is not None else None
    )
    return _Order(kind, parameters, opt_outs, token_ids, fingerprint, bool(wanted.progress))


def _terms(request: Request, service: Service, caller: Caller, kind: Kind) -> _Terms:
    """Each request's own, whether it joins another or not. Raises ApiError."""
    priority = caller.priority(request.headers)
    request.state.record.priority = priority
    seconds = allowed_seconds(request.headers, service.settings.max_request_seconds, kind == "events")
    return _Terms(time.monotonic() + seconds, priority)


def _without_previews(parameters: Parameters, opt_outs: OptOuts, integrations: Integrations) -> Parameters:
    """Previews of an image that is going to be judged would leave before it is."""
    if not parameters.num_previews or integrations.sends_previews or not opt_outs.is_moderated:
        return parameters
    prompt = parameters.prompt.warned("previews_off", "Images are moderated here, so there are no previews.")
    return replace(parameters, prompt=prompt, num_previews=0)


async def _prepared(request: Request, subscription: Subscription) -> None:
    """Raises ApiError, and leaves then."""
    try:
        await unless_disconnected(request, subscription.prepared())
    except BaseException:
        subscription.leave()
        raise


async def _tokenize(service: Service, prompt: str) -> tuple[int, ...]:
    """Raises ApiError if the prompt has too many tokens."""
    try:
        return await offload(len(prompt), lambda: service.engine.tokenize(prompt))
    except EngineError as error:
        raise from_engine(error) from error


def _join(service: Service, caller: Caller, order: _Order, terms: _Terms) -> Subscription:
    """Of the request under the same Idempotency-Key, or a new one. Leave it when done. Raises ApiError.

    Nothing is awaited in here, so two requests with one key cannot both find none.
    """
    found = service.idempotency.find(order.fingerprint) if order.fingerprint else None
    if isinstance(found, Transcript):
        return Subscription(found, terms.deadline)
    if found is None:
        found = _start(service, caller, order, terms)
        if order.fingerprint:
            service.idempotency.keep(order.fingerprint, found)
    return found.join(terms.deadline, terms.priority)


def _start(service: Service, caller: Caller, order: _Order, terms: _Terms) -> Generation:
    """Admit the request and start to generate. Raises ApiError 429."""
    slot = service.admission.admit(_engine_request(order, terms), caller)
    course = Course(
        renew=lambda renewed: service.admission.renew(slot, renewed),
        describe=lambda drawn: metadata.describe(drawn, service.engine.config, service.settings.embed_prompt),
    )
    processing = Processing(
        service.integrations, order.opt_outs, service.encoder, lambda prompt: _tokenize(service, prompt)
    )
    generation = Generation(service.engine, service.encoder, slot, order.parameters, processing, course)
    generation.task.add_done_callback(lambda _: service.admission.release(slot))
    return generation


def _engine_request(order: _Order, terms: _Terms) -> EngineRequest:
    parameters = order.parameters
    return EngineRequest(
        request_id="img-" + uuid.uuid4().hex,
        token_ids=order.token_ids,
        width=parameters.width,
        height=parameters.height,
        seeds=parameters.seeds,
        sampling=parameters.sampling,
        num_previews=parameters.num_previews,
        deadline=terms.deadline,
        priority=terms.priority,
    )


def _raw(result: answers.Result, parameters: Parameters) -> Response:
    picture = result.pictures[0]
    headers = {
        "Server-Timing": answers.server_timing(result.finished),
        "X-Seed": str(picture.seed),
        **answers.warning_header(parameters),
    }
    return Response(picture.data, media_type=MEDIA_TYPES[parameters.output_format], headers=headers)


async def _json(
    service: Service, transcript: Transcript, result: answers.Result, parameters: Parameters
) -> Response:
    model = service.engine.config.model_id
    body = await answers.json_body(transcript, parameters, result.pictures, model, service.encoder)
    headers = {"Server-Timing": answers.server_timing(result.finished)}
    return Response(body, media_type="application/json", headers=headers)
