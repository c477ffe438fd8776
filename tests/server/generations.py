"""Generations over the fake engine, in this process."""

from typing import Any

from engine.request import EngineRequest
from server.access.admission import Admission
from server.access.api_keys import Caller
from server.access.opt_outs import OptOuts
from server.generation.generation import Course, Generation
from server.generation.image_encoder import ImageEncoder
from server.generation.parameters import Parameters, resolve
from server.generation.processing import Processing
from server.integrations import Integrations
from server.schemas.images import ImageRequest
from server.settings.settings import Settings
from server.upstream.client import Backends
from tests.server.fake_engine import CONFIG, FakeEngine

BACKENDS = Backends(lambda *_: None)


async def tokenize(prompt: str) -> tuple[int, ...]:
    return tuple(prompt.encode())


def generate(
    prompt: str,
    engine: FakeEngine | None = None,
    processing: Processing | None = None,
    deadline: float | None = None,
    **fields: Any,
) -> Generation:
    """Begin one of priority `batch`; it is to be joined."""
    engine, encoder = engine or FakeEngine(seconds_per_step=0), ImageEncoder(1, 1)
    parameters = resolve(ImageRequest.model_validate({"prompt": prompt, "seed": 1, **fields}), CONFIG)
    slot = Admission(engine, 86400, 1).admit(_request(engine, prompt, parameters, deadline), Caller())
    course = Course(renew=lambda renewed: engine.reserve(renewed), describe=lambda _: {})
    generation = Generation(engine, encoder, slot, parameters, processing or _processing(encoder), course)
    generation.task.add_done_callback(lambda _: encoder.close())
    return generation


def _request(
    engine: FakeEngine, prompt: str, parameters: Parameters, deadline: float | None
) -> EngineRequest:
    return EngineRequest(
        request_id="id",
        token_ids=engine.tokenize(prompt),
        width=64,
        height=64,
        seeds=parameters.seeds,
        sampling=parameters.sampling,
        num_previews=parameters.num_previews,
        deadline=deadline,
        priority="batch",
    )


def _processing(encoder: ImageEncoder) -> Processing:
    return Processing(Integrations(Settings(model="fake"), BACKENDS, "fake"), OptOuts(), encoder, tokenize)
