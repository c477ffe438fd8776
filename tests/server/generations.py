"""Generations over the fake engine, in this process."""

from typing import Any

from engine.request import EngineRequest
from server.access.admission import Admission
from server.access.api_keys import Caller
from server.generation.generation import Generation
from server.generation.image_encoder import ImageEncoder
from server.generation.parameters import Parameters, ServedModel, resolve
from server.generation.processing import OptOuts, Processing
from server.integrations import Integrations
from server.schemas.images import ImageRequest
from server.settings.settings import Settings
from server.upstream.client import UpstreamClients
from tests.server.fake_engine import CONFIG, FakeEngine

UPSTREAMS = UpstreamClients(lambda *_: None)
SETTINGS = Settings(model="fake", image_threads=1, png_compress_level=1)


def generate(
    prompt: str,
    engine: FakeEngine | None = None,
    processing: Processing | None = None,
    deadline: float | None = None,
    **fields: Any,
) -> Generation:
    """Start a generation of priority `batch`, to be subscribed to."""
    engine, encoder = engine or FakeEngine(seconds_per_step=0), ImageEncoder(SETTINGS, lambda: CONFIG)
    parameters = resolve(
        ImageRequest.model_validate({"prompt": prompt, "seed": 1, **fields}), ServedModel(CONFIG)
    )
    slot = Admission(engine, 86400, 1).admit(_request(engine, prompt, parameters), Caller(), deadline)
    processing = processing or _processing(engine, encoder)
    generation = Generation(engine, slot, processing, encoder, parameters)
    generation.start()
    generation.task.add_done_callback(lambda _: encoder.close())
    return generation


def _request(engine: FakeEngine, prompt: str, parameters: Parameters) -> EngineRequest:
    return EngineRequest(
        request_id="id",
        token_ids=engine.tokenize(prompt),
        width=64,
        height=64,
        seeds=parameters.seeds,
        sampling=parameters.sampling,
        num_previews=parameters.num_previews,
        priority="batch",
    )


def _processing(engine: FakeEngine, encoder: ImageEncoder) -> Processing:
    return Processing(engine, encoder, Integrations(SETTINGS, UPSTREAMS, "fake"), OptOuts())
