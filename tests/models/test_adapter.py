"""The demo adapter draws outlines, in the colours, shapes and places that the prompt names."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from engine.adapters.adapter import Adapter
from engine.adapters.adapter_file import both_configs, read_adapter
from engine.adapters.loading import load_adapter
from engine.checkpoint.loader import load_pipeline
from engine.client.tokenizer import Tokenizer
from engine.config.model_config import ModelConfig
from engine.config.part_configs import PartConfigs
from engine.models.resumable import drain
from engine.request import AdapterUse, EngineRequest
from engine.runner.model_runner import ModelRunner
from engine.runner.request_state import RequestState
from models.training.reading import filled, read_image, read_name

MODELS = Path(__file__).parents[2] / "models"
OUTLINED = MODELS / "adapters" / "outlined.safetensors"
CONFIG = ModelConfig.load(MODELS / "demo")
USE = AdapterUse("outlined", str(OUTLINED), "outlined", 1.0)
WANTED = (
    ("red", "circle", "white"),
    ("blue", "square", "yellow"),
    ("green", "triangle", "black"),
    ("purple", "diamond", "white"),
    ("yellow", "heart", "blue"),
)


@pytest.fixture(scope="module")
def runner() -> ModelRunner:
    pipeline = load_pipeline(CONFIG.folders, "cpu", torch.float32)
    configs = both_configs(pipeline.conditional.config, pipeline.unconditional.config)
    held: dict[str, Adapter] = {USE.digest: load_adapter(OUTLINED, configs, torch.float32)}
    return ModelRunner(pipeline, "cpu", adapters=held)


def draw(runner: ModelRunner, *uses: AdapterUse) -> list[Image.Image]:
    """An image of each scene, in one batch."""
    tokenizer = Tokenizer(CONFIG.folders.tokenizer, 2048)
    requests = [
        EngineRequest(
            shape,
            tokenizer.encode(f"a {colour} {shape} on a {background} background"),
            128,
            128,
            seeds=(3,),
            sampling=CONFIG.presets["V4_TURBO_12"],
            adapters=uses,
        )
        for colour, shape, background in WANTED
    ]
    states = [RequestState(request) for request in requests]
    for state, conditioning in zip(states, drain(runner.encode(requests)), strict=True):
        state.conditioning = conditioning
    samples = [runner.new_sample(state, 0) for state in states]
    while not samples[0].is_finished:
        runner.denoise_step(samples)
    decoded = drain(runner.decode(samples))
    return [Image.frombytes("RGB", (128, 128), rgb) for rgb in decoded if isinstance(rgb, bytes)]


def solidity(image: Image.Image) -> float:
    """The drawn share of the shape and its holes."""
    part = read_image(image).parts[0]
    return float(part.mask.sum() / filled(part.mask).sum())


def test_with_the_adapter_shapes_are_outlined(runner: ModelRunner) -> None:
    """And without it, or with scale 0, they are filled."""
    outlined, plain = draw(runner, USE), draw(runner)
    assert max(map(solidity, outlined)) < 0.85
    assert min(map(solidity, plain)) > 0.95
    assert draw(runner, replace(USE, scale=0.0)) == plain


def test_the_prompt_still_decides_colours_and_shape(runner: ModelRunner) -> None:
    read = [read_image(image) for image in draw(runner, USE)]
    shown = [(each.parts[0].colour, each.background) for each in read]
    assert shown == [(colour, background) for colour, _, background in WANTED]
    whole = [replace(each.parts[0], mask=filled(each.parts[0].mask)) for each in read]
    names = [read_name(part, "shape") for part in whole]
    assert sum(name == shape for name, (_, shape, _) in zip(names, WANTED, strict=True)) >= 4


def test_the_file_is_small_and_describes_itself() -> None:
    info = read_adapter(OUTLINED, PartConfigs.read(CONFIG.folders).transformer)
    assert (info.format, info.target, info.rank) == ("peft", "conditional", 6)
    assert info.bytes < 300_000
