"""Compiled blocks give the same latents, with one compilation for all prompt lengths and sizes."""

import pytest
import torch
from torch import Tensor

from engine.adapters.adapter import Adapter, blank_adapter
from engine.checkpoint.loader import load_pipeline
from engine.config.model_config import ModelConfig
from engine.config.part_folders import PartFolders
from engine.kernels.packing import Packing
from engine.models.dit import DiT, compile_parts
from engine.models.low_rank import BatchUpdates
from engine.runner.model_runner import ModelRunner
from engine.tuning.store import ChoiceStore
from engine.tuning.tuner import tune
from tests.engine.adapters.test_adapter_file import CONFIG
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


def random_adapter(dit: DiT) -> Adapter:
    return blank_adapter(dit, 2).map(lambda _, tensor: torch.randn_like(tensor) / 4)


@torch.inference_mode()
def test_compiled_blocks_apply_adapters() -> None:
    """Between their compiled parts."""
    torch.compiler.reset()
    torch.manual_seed(0)
    dit = DiT(CONFIG).eval()
    first, second = (random_adapter(dit).conditional for _ in range(2))
    batch = [((first, 0.5),), (), ((first, 1.0), (second, -1.0))]
    text_lens, image_lens = [3, 5, 4], [4, 4, 4]
    packing = Packing.build(text_lens, image_lens, "cpu")
    text = [torch.randn(length, CONFIG.hidden_size) for length in text_lens]
    rotary = torch.cat([dit.rotary(length, 2, 2) for length in text_lens], dim=1)
    latents, modulation = torch.randn(12, CONFIG.in_channels), dit.modulate(torch.tensor([0.1, 0.5, 0.9]))

    def velocity(updates: BatchUpdates | None) -> Tensor:
        return dit(latents, text, modulation, rotary, packing, updates)

    dit.embed_image_indicator.weight.zero_()
    updates = BatchUpdates.of(batch)
    adapted = velocity(updates)
    assert (adapted - velocity(None)).abs().max() > 0.1
    dit.parts = compile_parts(backend="eager")
    torch.testing.assert_close(velocity(updates), adapted, atol=1e-5, rtol=1e-5)
