"""Submission of requests: each starts a generation or shares the one of its Idempotency-Key."""

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.client.backlog import Forecast
from engine.errors import DeadlineExceededError
from engine.request import EngineRequest, Priority
from server.access.admission import Admission
from server.access.api_keys import Caller
from server.captions.prompt import Prompt
from server.engine_port import Engine
from server.generation.generation import Generation
from server.generation.idempotency import Fingerprint, IdempotencyCache, is_final
from server.generation.image_encoder import ImageEncoder
from server.generation.parameters import Parameters
from server.generation.processing import OptOuts, Processing, tokenize
from server.generation.sharing import Permit, Sharing
from server.generation.transcript import Subscription, Transcript
from server.integrations import Integrations
from server.magic_prompt.expander import TokenIds
from server.schemas.errors import from_engine


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A valid request of `caller`; holds nothing of its body. `deadline` is in `time.monotonic()` seconds.

    `request_id` identifies its generation, unless it shares that of another request.
    """

    caller: Caller
    parameters: Parameters
    opt_outs: OptOuts
    priority: Priority
    deadline: float
    fingerprint: Fingerprint | None = None
    request_id: str = field(default_factory=lambda: "img-" + uuid.uuid4().hex)


class Generations:
    """Starts generations and shares them between requests."""

    def __init__(
        self,
        engine: Engine,
        admission: Admission,
        cache: IdempotencyCache,
        encoder: ImageEncoder,
        integrations: Integrations,
        sharing: Sharing | None = None,
    ) -> None:
        """`sharing` is None for a server that works alone."""
        self._engine = engine
        self._admission = admission
        self._cache = cache
        self._encoder = encoder
        self._integrations = integrations
        self._sharing = sharing

    async def submit(self, request: GenerationRequest) -> Subscription:
        """Leave the subscription when the response is done. Raises ApiError 400, 422 or 429."""
        token_ids = await tokenize(self._engine, request.parameters.prompt.text)
        while not self._can_subscribe(request):
            assert self._sharing is not None
            entered = await self._sharing.enter(
                request.request_id, request.caller, request.fingerprint, request.deadline
            )
            if isinstance(entered, Transcript):
                return Subscription(entered, request.deadline)
            if entered is not None:
                return self._permitted(request, token_ids, entered)
        return self._subscribe(request, token_ids)

    def _can_subscribe(self, request: GenerationRequest) -> bool:
        """Whether no other server needs to be asked: nothing is shared, or a request of this one is."""
        if self._sharing is None:
            return True
        if request.fingerprint is None:
            return request.caller.max_concurrency is None
        return self._cache.find(request.fingerprint) is not None

    def _permitted(self, request: GenerationRequest, token_ids: TokenIds, permit: Permit) -> Subscription:
        """Start a generation that finishes the permit."""
        try:
            generation = self._start(request, token_ids, permit)
        except BaseException:
            permit.finish(None)
            raise
        generation.task.add_done_callback(lambda _: permit.finish(_answer(generation)))
        return generation.subscribe(request.deadline, request.priority)

    async def device_seconds(self, request: GenerationRequest) -> float | None:
        """Predicted seconds on the fastest device; None if no device is ready. Raises ApiError 400."""
        return min((forecast.own for forecast in await self._forecasts(request)), default=None)

    async def forecast(self, request: GenerationRequest) -> Forecast:
        """On the device where the request would be done first. Raises ApiError 400."""
        return min(await self._forecasts(request), key=lambda forecast: forecast.total)

    async def _forecasts(self, request: GenerationRequest) -> Sequence[Forecast]:
        token_ids = await tokenize(self._engine, request.parameters.prompt.text)
        return self._engine.forecast(_engine_request(request, request.parameters, token_ids))

    async def expand(self, request: GenerationRequest) -> Prompt:
        """The prompt with which a generation would begin: moderated and expanded. Raises ApiError."""
        token_ids = await tokenize(self._engine, request.parameters.prompt.text)
        processing = Processing(self._engine, self._encoder, self._integrations, request.opt_outs)
        try:
            async with asyncio.timeout_at(request.deadline):
                parameters, _ = await processing.prepare(request.parameters, token_ids)
        except TimeoutError:
            raise from_engine(DeadlineExceededError("the deadline passed")) from None
        return parameters.prompt

    def _subscribe(self, request: GenerationRequest, token_ids: TokenIds) -> Subscription:
        """Awaits nothing: two requests with one Idempotency-Key cannot both start a generation."""
        found = self._cache.find(request.fingerprint) if request.fingerprint else None
        if isinstance(found, Transcript):
            return Subscription(found, request.deadline)
        generation = found or self._start(request, token_ids)
        return generation.subscribe(request.deadline, request.priority)

    def _start(
        self, request: GenerationRequest, token_ids: TokenIds, permit: Permit | None = None
    ) -> Generation:
        processing = Processing(
            self._engine,
            self._encoder,
            self._integrations,
            request.opt_outs,
            request.parameters.adapters,
        )
        parameters = processing.check_previews(request.parameters)
        wanted = _engine_request(request, parameters, token_ids)
        slot = self._admission.admit(wanted, request.caller, request.deadline)
        confirm = permit.confirm if permit else None
        generation = Generation(self._engine, slot, processing, self._encoder, parameters, confirm)
        generation.start()
        if request.fingerprint:
            self._cache.add(request.fingerprint, generation)
        return generation


def _answer(generation: Generation) -> Transcript | None:
    """What repeated requests get."""
    is_kept = not generation.task.cancelled() and is_final(generation.transcript)
    return generation.transcript.kept() if is_kept else None


def _engine_request(request: GenerationRequest, parameters: Parameters, token_ids: TokenIds) -> EngineRequest:
    return EngineRequest(
        request_id=request.request_id,
        token_ids=token_ids,
        width=parameters.width,
        height=parameters.height,
        seeds=parameters.seeds,
        sampling=parameters.sampling,
        num_previews=parameters.num_previews,
        priority=request.priority,
        adapters=parameters.adapters,
        source=parameters.source,
    )
