"""A seed gives the same image alone and in any batch: within 1 of 255, on the demo model in float32."""

import asyncio
import multiprocessing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from engine.checkpoint.loader import load_pipeline
from engine.client.engine_client import EngineClient
from engine.client.tokenizer import Tokenizer
from engine.config.model_config import ModelConfig
from engine.config.options import EngineOptions
from engine.config.part_folders import PartFolders
from engine.cost import CostModel, LinearCost
from engine.messages import FromWorker, ImageDone, RequestFailed, UnitKind, UnitStarted
from engine.models.resumable import drain
from engine.request import EngineRequest, SourceImage
from engine.runner.model_runner import ModelRunner
from engine.runner.request_state import RequestState, SampleState
from engine.scheduling.batch_limits import BatchLimits
from engine.scheduling.scheduler import Scheduler
from engine.worker.core import EngineCore
from tests.engine.conftest import relative
from tests.engine.fakes import COST
from tests.engine.sources import gradient, rectangle, source

DEMO = Path(__file__).parents[3] / "models" / "demo"
CONFIG = ModelConfig.load(DEMO)
PROMPT = "a blue square, and beside it a very small green triangle on black"
TOKENIZER = Tokenizer(DEMO / "tokenizer", 2048)
Picture = NDArray[np.int16]
# So that prompts are encoded and images decoded together whenever they wait.
SLICED = LinearCost(1.0, 0.001)
BATCHED = replace(COST, encode=SLICED, decode=SLICED, encode_image=SLICED)


def request(
    seed: int,
    preset: str = "V4_TURBO_12",
    prompt: str = "a red circle on a white background",
    size: tuple[int, int] = (64, 64),
    images: int = 1,
    request_id: str | None = None,
    source: SourceImage | None = None,
) -> EngineRequest:
    chosen = CONFIG.presets[preset]
    return EngineRequest(
        request_id or f"{preset}-{seed}",
        TOKENIZER.encode(prompt),
        *size,
        seeds=tuple(range(seed, seed + images)),
        sampling=chosen,
        num_previews=1,
        source=source,
    )


WANTED = [
    request(7),
    request(11, "V4_DEFAULT_20", PROMPT),
    request(13, "V4_QUALITY_48", "rings", size=(64, 64)),
    request(17, source=source(gradient(64, 64), 0.6)),
    request(19, "V4_DEFAULT_20", source=source(gradient(64, 64), 0.8, rectangle(64, 64, 20, 0, 40, 64))),
]
CROWD = [
    request(100, "V4_DEFAULT_20", "a green square"),
    request(200, "V4_QUALITY_48", "two yellow triangles over a blue stripe on a grey background"),
    request(300, images=3),
]


@pytest.fixture(scope="module")
def runner() -> ModelRunner:
    return ModelRunner(load_pipeline(PartFolders.of(DEMO), "cpu", torch.float32), "cpu")


@pytest.fixture(scope="module")
def alone(runner: ModelRunner) -> dict[str, Picture]:
    """The image of each request, generated alone."""
    return {each.request_id: run(runner, [each])[each.request_id, 0] for each in WANTED}


class Engine:
    """A separate core with the real runner."""

    def __init__(self, runner: ModelRunner, cost: CostModel = BATCHED) -> None:
        self.sent: list[FromWorker] = []
        self.core = EngineCore(runner, Scheduler(cost, BatchLimits(cost), 64), self.sent.append)

    def largest_batch(self, kind: UnitKind = "denoise") -> int:
        units = [message for message in self.sent if isinstance(message, UnitStarted)]
        return max(len(unit.request_ids) for unit in units if unit.kind == kind)

    def pictures(self) -> dict[tuple[str, int], Picture]:
        images = [message for message in self.sent if isinstance(message, ImageDone)]
        return {(image.request_id, image.image_index): pixels(image) for image in images}


def run(runner: ModelRunner, requests: list[EngineRequest]) -> dict[tuple[str, int], Picture]:
    return ran(runner, requests).pictures()


def ran(runner: ModelRunner, requests: list[EngineRequest]) -> Engine:
    engine = Engine(runner)
    for each in requests:
        engine.core.add(each)
    while engine.core.has_work:
        engine.core.step()
    return engine


def pixels(image: ImageDone) -> Picture:
    return flat(image.rgb).reshape(image.height, image.width, 3)


def assert_same(picture: Picture, expected: Picture) -> None:
    assert int(np.abs(picture - expected).max()) <= 1


def test_different_seeds_and_prompts_make_different_images(alone: dict[str, Picture]) -> None:
    """Otherwise the other tests would prove nothing."""
    first, *others = alone.values()
    assert all(np.abs(first - other).max() > 20 for other in others)


def test_in_a_mixed_batch(runner: ModelRunner, alone: dict[str, Picture]) -> None:
    runner.clear_cache()
    engine = ran(runner, [*CROWD[:1], *WANTED, *CROWD[1:]])
    assert engine.largest_batch("encode") == 8
    assert engine.largest_batch("encode_image") == 2
    assert engine.largest_batch("decode") >= 4
    for name, expected in alone.items():
        assert_same(engine.pictures()[name, 0], expected)


def test_after_joining_late_and_when_others_leave(runner: ModelRunner, alone: dict[str, Picture]) -> None:
    engine = Engine(runner)
    for each in CROWD:
        engine.core.add(each)
    pending = list(WANTED)
    steps = 0
    while engine.core.has_work or pending:
        engine.core.step()
        steps += 1
        if pending and (steps % 14 == 0 or not engine.core.has_work):
            engine.core.add(pending.pop())
        if steps == 40:
            engine.core.abort(CROWD[1].request_id)
    assert engine.largest_batch() > 4
    for name, expected in alone.items():
        assert_same(engine.pictures()[name, 0], expected)


def test_images_of_one_request_are_those_of_their_seeds(
    runner: ModelRunner, alone: dict[str, Picture]
) -> None:
    several = run(runner, [request(5, images=4, request_id="several")])
    assert_same(several["several", 2], alone["V4_TURBO_12-7"])


def test_several_sizes_at_the_same_time(runner: ModelRunner, alone: dict[str, Picture]) -> None:
    wide = request(3, size=(128, 64))
    pictures = run(runner, [wide, *WANTED])
    assert_same(pictures[wide.request_id, 0], run(runner, [wide])[wide.request_id, 0])
    for name, expected in alone.items():
        assert_same(pictures[name, 0], expected)


def test_a_cached_prompt_makes_no_difference(runner: ModelRunner, alone: dict[str, Picture]) -> None:
    runner.clear_cache()
    for _ in range(2):
        assert_same(run(runner, [WANTED[0]])["V4_TURBO_12-7", 0], alone["V4_TURBO_12-7"])
    assert (runner.cache_hits, runner.cache_misses) == (1, 1)


def test_the_unconditional_pass_on_a_separate_device(alone: dict[str, Picture]) -> None:
    beside = ModelRunner(
        load_pipeline(PartFolders.of(DEMO), "cpu", torch.float32, "cpu"), "cpu", uncond_device="cpu"
    )
    pictures = run(beside, WANTED)
    for name, expected in alone.items():
        assert_same(pictures[name, 0], expected)


def test_prompts_encoded_together(runner: ModelRunner) -> None:
    """Equal and different lengths; as a step's products, in float32 rounding."""
    for prompts in (["a red circle", "a blue circle"], ["rings", PROMPT, "a red circle"]):
        wanted = [request(0, prompt=prompt) for prompt in prompts]
        runner.clear_cache()
        alone = [drain(runner.encode([each]))[0].text for each in wanted]
        runner.clear_cache()
        for expected, together in zip(alone, drain(runner.encode(wanted)), strict=True):
            assert relative(together.text, expected) < 1e-5


def test_each_of_several_prompts_begins_at_position_0(runner: ModelRunner) -> None:
    rotary = runner.pipeline.text_encoder._rotary
    assert torch.equal(rotary([3, 2]), torch.cat([rotary([3]), rotary([2])], dim=1))


def test_a_cached_prompt_does_not_keep_its_batch_in_memory(runner: ModelRunner) -> None:
    runner.clear_cache()
    for each in drain(runner.encode([request(0, prompt="rings"), request(0, prompt=PROMPT)])):
        assert each.text.untyped_storage().nbytes() == each.text.nbytes


def test_a_nan_in_a_decode_fails_only_its_image(runner: ModelRunner) -> None:
    """In the same convolutions as the others."""
    samples = [finished(runner, seed) for seed in (1, 2, 3)]
    expected = [drain(runner.decode([each]))[0] for each in samples]
    samples[1].latents = samples[1].latents.clone()
    samples[1].latents[0, 0] = float("nan")
    first, second, third = drain(runner.decode(samples))
    assert isinstance(second, FloatingPointError)
    for decoded, alone in ((first, expected[0]), (third, expected[2])):
        assert_same(flat(decoded), flat(alone))


def flat(decoded: bytes | FloatingPointError) -> Picture:
    assert isinstance(decoded, bytes)
    return np.frombuffer(decoded, np.uint8).astype(np.int16)


def finished(runner: ModelRunner, seed: int) -> SampleState:
    """Noise, as if it were a finished sample."""
    sample = runner.new_sample(RequestState(request(seed)), 0)
    sample.step_index = sample.num_steps
    return sample


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_nan_fails_only_its_request(runner: ModelRunner, alone: dict[str, Picture], value: float) -> None:
    engine = Engine(runner)
    guilty = CROWD[0]
    for each in (*WANTED, guilty):
        engine.core.add(each)
    poisoned: list[SampleState] = []
    while engine.core.has_work:
        engine.core.step()
        running = [sample for queue in engine.core._scheduler._order for sample in queue.running]
        if not poisoned:
            poisoned = [s for s in running if s.request is guilty and s.step_index == 3]
            for sample in poisoned:
                sample.latents = sample.latents * value
    assert poisoned
    assert [m.request_id for m in engine.sent if isinstance(m, RequestFailed)] == [guilty.request_id]
    for name, expected in alone.items():
        assert_same(engine.pictures()[name, 0], expected)


# Through real worker processes.


async def generate(client: EngineClient, wanted: EngineRequest) -> Picture:
    images = [output async for output in client.generate(wanted) if isinstance(output, ImageDone)]
    return pixels(images[0])


async def ready(client: EngineClient) -> None:
    async with asyncio.timeout(120):
        while not all(worker.is_ready for worker in client._workers):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def test_two_workers_and_one_that_was_killed_make_the_same_images(alone: dict[str, Picture]) -> None:
    """With the unconditional pass on a separate device in both."""

    async def main() -> list[Picture]:
        client = EngineClient(CONFIG, EngineOptions(("cpu", "cpu"), uncond_device="cpu", dtype="float32"))
        await client.start()
        try:
            await ready(client)
            first = asyncio.gather(*(generate(client, each) for each in WANTED))
            await asyncio.sleep(0)  # they are with their workers
            multiprocessing.active_children()[0].kill()
            pictures = await first
            await ready(client)
            again = await asyncio.gather(*(generate(client, each) for each in WANTED))
            assert all(worker in client._units for worker in client._workers), "both did some of the work"
            return [*pictures, *again]
        finally:
            await client.close()

    for picture, expected in zip(asyncio.run(main()), [*alone.values()] * 2, strict=True):
        assert_same(picture, expected)
