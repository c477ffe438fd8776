"""Compiled blocks give the same latents, with one compilation for all prompt lengths and sizes."""

import pytest
import torch

from engine.checkpoint.loader import load_pipeline
from engine.config.model_config import ModelConfig
from engine.config.part_folders import PartFolders
from engine.runner.model_runner import ModelRunner
from engine.tuning.store import ChoiceStore
from engine.tuning.tuner import tune
from tests.engine.conftest import Checkpoints, Runners, finish, start
from tests.engine.reference import Job

JOBS = (
    Job("a", 96, 64, (7.0, 3.0), seed=1),
    Job("a poster that says HELLO", 96, 64, (7.0, 1.0), seed=2),
    Job("Füchse 🦊" * 7, 176, 96, (7.0, 3.0), seed=3),
)

PINS = (
    ("attention", "native"),
    ("feed_forward", "prepacked"),
    ("linear", "prepacked"),
    ("norm", "vector"),
    ("rotary", "halves"),
)


@pytest.mark.parametrize(
    ("layout", "tuned"),
    [("diffusers", True), ("official-fp8", False), ("official-nf4", False)],
)
def test_compiled_blocks_make_the_same_latents(
    checkpoints: Checkpoints, runners: Runners, layout: str, tuned: bool
) -> None:
    checkpoint, eager = checkpoints(layout), runners(layout)
    torch.compiler.reset()
    pipeline = load_pipeline(PartFolders.of(checkpoint.path), "cpu", torch.float32)
    if tuned:
        tune(pipeline, ModelConfig.load(checkpoint.path), PINS, ChoiceStore(None))
    compiled = ModelRunner(pipeline, "cpu", compiled=True)
    finish(compiled, start(compiled, checkpoint, JOBS[0]))
    with torch.compiler.set_stance("fail_on_recompile"):
        for job in JOBS:
            wanted = finish(eager, start(eager, checkpoint, job)).latents
            latents = finish(compiled, start(compiled, checkpoint, job)).latents
            torch.testing.assert_close(latents, wanted, atol=1e-4, rtol=1e-4)


def test_compiled_blocks_take_a_batch(checkpoints: Checkpoints, runners: Runners) -> None:
    checkpoint, eager = checkpoints("diffusers"), runners("diffusers")
    compiled = ModelRunner(
        load_pipeline(PartFolders.of(checkpoint.path), "cpu", torch.float32), "cpu", compiled=True
    )
    batches = [[start(each, checkpoint, job) for job in JOBS[:2]] for each in (eager, compiled)]
    eager.denoise_step(batches[0])
    compiled.denoise_step(batches[1])
    for wanted, sample in zip(*batches, strict=True):
        torch.testing.assert_close(sample.latents, wanted.latents, atol=1e-4, rtol=1e-4)
