"""Adapters compared with diffusers' `load_lora_weights`, on random weights in float32."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.kernels.candidates import Candidate
from engine.kernels.low_rank import CANDIDATES
from engine.request import AdapterUse
from engine.runner.model_runner import ModelRunner
from tests.engine import reference
from tests.engine.adapters import files
from tests.engine.adapters.uses import Held, begin
from tests.engine.checkpoints import Checkpoint
from tests.engine.conftest import finish, finish_all, relative, start
from tests.engine.reference import Job

JOB = Job('a poster that says "HELLO"', 96, 64, guidance=(7.0, 1.0, 3.0))
Scales = dict[str, float]


@pytest.fixture(scope="module")
def held() -> Held:
    return Held()


@pytest.fixture(scope="module")
def adapting(runner: ModelRunner, held: Held) -> ModelRunner:
    """The runner of the diffusers layout, with adapters."""
    return ModelRunner(runner.pipeline, "cpu", adapters=held)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, runner: ModelRunner) -> Path:
    """An adapter of each format, with different weights and ranks, and four more."""
    folder, config = tmp_path_factory.mktemp("adapters"), runner.pipeline.conditional.config
    for rank, (name, tensors) in enumerate(files.FORMATS.items(), start=3):
        files.write(folder / f"{name}.safetensors", tensors(config, rank, seed=rank))
    for seed in range(4):
        files.write(folder / f"{seed}.safetensors", files.peft(config, 2 + seed, seed=20 + seed))
    return folder


@pytest.fixture(scope="module")
def referee(checkpoint: Checkpoint, folder: Path) -> Any:
    """A copy of the pipeline of diffusers that has loaded an adapter of each format."""
    pipeline = copy.deepcopy(checkpoint.referee)
    for name in files.FORMATS:
        pipeline.load_lora_weights(str(folder), weight_name=f"{name}.safetensors", adapter_name=name)
    return pipeline


def expected(pipeline: Any, job: Job, steps: list[Scales]) -> Tensor:
    """Final latents (N, C) of diffusers, with these scales of its adapters in each step."""
    features = reference.text_features(pipeline, reference.token_ids(pipeline, job.prompt))
    z, times = reference.noise(job, pipeline.transformer.config.in_channels), reference.schedule(job)
    for step, (weight, scales) in enumerate(zip(job.guidance, steps, strict=True)):
        pipeline.transformer.set_adapters(list(scales), list(scales.values()))
        t, s = times[step], times[step + 1]
        conditional = reference.velocity(pipeline.transformer, z, t, features, job.grid)
        unconditional = reference.velocity(pipeline.unconditional_transformer, z, t, None, job.grid)
        z = z + (weight * conditional + (1 - weight) * unconditional) * (s - t)
    return z


@pytest.mark.parametrize("name", files.FORMATS)
def test_each_format(
    adapting: ModelRunner, checkpoint: Checkpoint, referee: Any, held: Held, folder: Path, name: str
) -> None:
    use = held.use(adapting, folder / f"{name}.safetensors", scale=0.8)
    latents = finish(adapting, begin(adapting, checkpoint, JOB, use)).latents
    wanted = expected(referee, JOB, [{name: 0.8}] * 3)
    assert relative(latents, wanted) < 1e-4
    assert relative(latents, finish(adapting, start(adapting, checkpoint, JOB)).latents) > 0.05


def test_two_adapters_with_scales_each_in_some_steps(
    adapting: ModelRunner, checkpoint: Checkpoint, referee: Any, held: Held, folder: Path
) -> None:
    first = held.use(adapting, folder / "peft.safetensors", 0.7, end=2)
    second = held.use(adapting, folder / "kohya.safetensors", -1.3, first=1)
    latents = finish(adapting, begin(adapting, checkpoint, JOB, first, second)).latents
    steps = [{"peft": 0.7}, {"peft": 0.7, "kohya": -1.3}, {"kohya": -1.3}]
    assert relative(latents, expected(referee, JOB, steps)) < 1e-4


def test_an_adapter_that_is_saved_with_its_alpha(
    adapting: ModelRunner, checkpoint: Checkpoint, held: Held, tmp_path: Path
) -> None:
    """As PEFT and diffusers save it, in the metadata."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipeline = with_own(checkpoint, "transformer")
    targets = ["to_q", "to_v", "feed_forward.w1"]
    config = LoraConfig(r=4, lora_alpha=2, target_modules=targets, alpha_pattern={"to_v": 6})
    config.init_lora_weights = False
    torch.manual_seed(3)
    pipeline.transformer.add_adapter(config, "mine")
    pipeline.save_lora_weights(
        tmp_path,
        get_peft_model_state_dict(pipeline.transformer, adapter_name="mine"),
        transformer_lora_adapter_metadata=pipeline.transformer.peft_config["mine"].to_dict(),
    )
    use = held.use(adapting, tmp_path / "pytorch_lora_weights.safetensors")
    latents = finish(adapting, begin(adapting, checkpoint, JOB, use)).latents
    assert relative(latents, reference.sample(pipeline, JOB)) < 1e-4


def test_an_adapter_of_the_unconditional_transformer(
    adapting: ModelRunner, checkpoint: Checkpoint, held: Held, tmp_path: Path
) -> None:
    tensors = files.peft(adapting.pipeline.unconditional.config, prefix="")
    prefixed = {f"unconditional_transformer.{key}": tensor for key, tensor in tensors.items()}
    use = held.use(adapting, files.write(tmp_path / "unconditional.safetensors", prefixed))
    pipeline = with_own(checkpoint, "unconditional_transformer")
    pipeline.unconditional_transformer.load_lora_adapter(tensors, prefix=None)
    latents = finish(adapting, begin(adapting, checkpoint, JOB, use)).latents
    assert relative(latents, reference.sample(pipeline, JOB)) < 1e-4


def with_own(checkpoint: Checkpoint, part: str) -> Any:
    """The pipeline of diffusers with a copy of one part."""
    pipeline = copy.copy(checkpoint.referee)
    setattr(pipeline, part, copy.deepcopy(getattr(pipeline, part)))
    return pipeline


def test_the_conditional_transformer_imitates_the_unconditional_one(
    runner: ModelRunner, checkpoint: Checkpoint, referee: Any, held: Held, folder: Path
) -> None:
    """One set of weights for both passes. An adapter of a request changes the conditional pass only."""
    pipeline = replace(runner.pipeline, unconditional=runner.pipeline.conditional)
    style, imitation = (folder / f"{name}.safetensors" for name in ("peft", "comfyui"))
    held.use(runner, imitation)
    imitating = ModelRunner(pipeline, "cpu", adapters=held, uncond_adapter=held[str(imitation)])
    both = copy.copy(referee)
    both.unconditional_transformer = copy.deepcopy(referee.transformer)
    both.unconditional_transformer.set_adapters(["comfyui"], [1.0])
    use = held.use(runner, style)
    styled = begin(imitating, checkpoint, JOB, use)
    first, second = (begin(imitating, checkpoint, JOB).state.conditioned for _ in range(2))
    assert first.conditional is second.conditional is not styled.state.conditioned.conditional
    assert first.unconditional is second.unconditional is styled.state.conditioned.unconditional
    assert relative(finish(imitating, styled).latents, expected(both, JOB, [{"peft": 1.0}] * 3)) < 1e-4


def test_a_transformer_that_runs_both_passes_is_adapted_in_both(
    runner: ModelRunner, checkpoint: Checkpoint, referee: Any, held: Held, folder: Path
) -> None:
    pipeline = replace(runner.pipeline, unconditional=runner.pipeline.conditional)
    shared = ModelRunner(pipeline, "cpu", adapters=held)
    both = copy.copy(referee)
    both.unconditional_transformer = referee.transformer
    use = held.use(runner, folder / "peft.safetensors")
    latents = finish(shared, begin(shared, checkpoint, JOB, use)).latents
    assert relative(latents, expected(both, JOB, [{"peft": 1.0}] * 3)) < 1e-4


def mixed(runner: ModelRunner, held: Held, folder: Path) -> list[tuple[Job, tuple[AdapterUse, ...]]]:
    """Eight jobs: five adapters, some twice or together, and none."""

    def use(name: str, scale: float = 1.0, first: int = 0) -> AdapterUse:
        return held.use(runner, folder / f"{name}.safetensors", scale, first)

    uses: list[tuple[AdapterUse, ...]] = [
        (use("0"),),
        (use("1", 0.5),),
        (),
        (use("1", 0.5),),
        (use("1", 0.5),),
        (use("2"), use("3", -1.0, first=1)),
        (),
        (use("kohya", 1.2),),
    ]
    prompts = ("a", JOB.prompt, JOB.prompt * 3)
    guidance = ((7.0, 1.0, 3.0), (1.0, 1.0), (5.0, 2.0, 1.0, 3.0))
    return [
        (replace(JOB, prompt=prompts[i % 3], guidance=guidance[i % 3], seed=i), each)
        for i, each in enumerate(uses)
    ]


@pytest.mark.parametrize("products", CANDIDATES, ids=lambda candidate: candidate.name)
def test_a_batch_with_five_adapters_and_none_equals_each_alone(
    adapting: ModelRunner,
    checkpoint: Checkpoint,
    held: Held,
    folder: Path,
    products: Candidate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(adapting.pipeline.conditional.low_rank, "kernel", products.run)
    jobs = mixed(adapting, held, folder)
    samples = [begin(adapting, checkpoint, job, *uses) for job, uses in jobs]
    adapting.denoise_step(samples[:3])
    finish_all(adapting, samples)
    for (job, uses), sample in zip(jobs, samples, strict=True):
        alone = finish(adapting, begin(adapting, checkpoint, job, *uses))
        assert relative(sample.latents, alone.latents) < 1e-5


def test_passes_with_adapters_are_not_replayed_from_cuda_graphs(
    runner: ModelRunner, checkpoint: Checkpoint, referee: Any, held: Held, folder: Path
) -> None:
    """A recording of the same shape would leave them out. The unconditional pass is recorded."""

    def record(run: Callable[[], Tensor]) -> Any:
        recorded.append(run)
        return SimpleNamespace(replay=run)

    recorded: list[Callable[[], Tensor]] = []
    recording = ModelRunner(runner.pipeline, "cpu", recorder=lambda _: record, adapters=held)
    job = replace(JOB, guidance=(7.0, 7.0, 3.0))
    use = held.use(runner, folder / "peft.safetensors")
    plain = finish(recording, start(recording, checkpoint, job)).latents
    assert len(recorded) == 2
    latents = finish(recording, begin(recording, checkpoint, job, use)).latents
    assert len(recorded) == 2
    assert relative(latents, expected(referee, job, [{"peft": 1.0}] * 3)) < 1e-4
    assert relative(latents, plain) > 0.05
