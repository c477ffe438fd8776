"""The engine on a GPU, compared with the CPU in float32, which other tests compare with diffusers."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from engine.checkpoint.loader import load_pipeline
from engine.config.model_config import PUBLISHED_PRESETS
from engine.config.part_folders import PartFolders
from engine.kernels.attention import Attend, native
from engine.kernels.capabilities import choose_dtype
from engine.kernels.packing import Rows
from engine.runner.cuda_graphs import cuda_recorder
from engine.runner.device import Device, choose_device
from engine.runner.model_runner import ModelRunner
from engine.runner.request_state import SampleState
from tests.engine.checkpoints import LAYOUTS, Checkpoint
from tests.engine.conftest import Checkpoints, Runners, finish, finish_all, relative, rgb, start
from tests.engine.reference import Job

TURBO = PUBLISHED_PRESETS["V4_TURBO_12"].guidance_schedule
PROMPT = "a poster that says HELLO"
CUDA = torch.device("cuda")
JOBS = (
    Job("a", 96, 64, TURBO, seed=1),
    Job(PROMPT, 96, 64, (7.0, 1.0, 3.0, 1.0), seed=2),
    Job("Füchse 🦊" * 7, 96, 64, (7.0, 3.0, 7.0, 3.0), seed=3),
)


def load(checkpoint: Checkpoint, dtype: torch.dtype, compiled: bool = False) -> ModelRunner:
    return ModelRunner(load_pipeline(PartFolders.of(checkpoint.path), CUDA, dtype), CUDA, compiled=compiled)


@torch.inference_mode()
def test_an_offloaded_text_encoder_computes_the_same(checkpoints: Checkpoints) -> None:
    folders, prompt = PartFolders.of(checkpoints("official-fp8").path), tuple(range(3, 40))
    plain, offloaded = (
        load_pipeline(folders, CUDA, torch.bfloat16, offloads=offloads).text_encoder
        for offloads in (False, True)
    )
    assert offloaded.weights_device.type == "cpu"
    assert all(weight.is_pinned() for weight in offloaded.language_model.layers.parameters())
    assert torch.equal(plain(prompt), offloaded(prompt))
    assert torch.equal(plain(prompt[:5]), offloaded(prompt[:5])), "copies reuse the memory of earlier layers"


def test_a_gpu_with_bfloat16_is_the_default() -> None:
    assert choose_device(None) == CUDA
    assert choose_dtype(CUDA, None) == torch.bfloat16


@pytest.mark.parametrize("layout", LAYOUTS)
def test_float32_latents_and_image_match_the_cpu(
    checkpoints: Checkpoints, runners: Runners, layout: str
) -> None:
    job = Job(PROMPT, 320, 272, TURBO)
    here, there = runners(layout), load(checkpoints(layout), torch.float32)
    wanted, sample = (finish(each, start(each, checkpoints(layout), job)) for each in (here, there))
    assert relative(sample.latents, wanted.latents) < 1e-4
    difference = np.abs(rgb(there, sample) - rgb(here, wanted))
    assert difference.max() <= 2
    assert difference.mean() < 0.02


@pytest.mark.parametrize(
    ("layout", "compiled"),
    [
        *((layout, False) for layout in LAYOUTS),
        ("diffusers", True),
        ("official-fp8", True),
        ("official-nf4", True),
    ],
)
def test_bfloat16_images_are_close_to_float32(
    checkpoints: Checkpoints, runners: Runners, layout: str, compiled: bool
) -> None:
    job = Job(PROMPT, 256, 256, TURBO)
    here, there = runners(layout), load(checkpoints(layout), torch.bfloat16, compiled)
    images = [rgb(each, finish(each, start(each, checkpoints(layout), job))) for each in (here, there)]
    assert 0 < np.abs(images[0] - images[1]).mean() <= 3


def test_one_compilation_serves_all_lengths_sizes_and_batches(checkpoint: Checkpoint) -> None:
    torch.compiler.reset()
    eager, compiled = (load(checkpoint, torch.bfloat16, each) for each in (False, True))
    large = Job(PROMPT, 176, 96, (7.0, 3.0), seed=4)
    finish(compiled, start(compiled, checkpoint, JOBS[0]))
    compiled.denoise_step([start(compiled, checkpoint, job) for job in JOBS])
    with torch.compiler.set_stance("fail_on_recompile"):
        for job in (*JOBS, large):
            wanted, sample = (finish(each, start(each, checkpoint, job)) for each in (eager, compiled))
            assert relative(sample.latents, wanted.latents) < 0.05
        compiled.denoise_step([start(compiled, checkpoint, job) for job in JOBS[:2]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batched_samples_match_samples_run_alone(checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    """Prompt lengths, presets, guidance and progress differ: samples join late and leave early."""
    runner = load(checkpoint, dtype)
    samples = [start(runner, checkpoint, job) for job in JOBS]
    runner.denoise_step(samples[:1])
    finish_all(runner, samples)
    for job, sample in zip(JOBS, samples, strict=True):
        alone = finish(runner, start(runner, checkpoint, job))
        assert relative(sample.latents, alone.latents) < (1e-4 if dtype == torch.float32 else 0.05)


@pytest.mark.parametrize("image_alone", [False, True])
@pytest.mark.parametrize("lens", [[286], [94, 64, 300], [100, 100], [2500], [2500, 100]])
def test_attention_over_a_packed_row(lens: list[int], image_alone: bool) -> None:
    """The published heads, bfloat16."""
    torch.manual_seed(0)
    queries = [n - 30 for n in lens] if image_alone else lens
    q, k, v = (torch.randn(sum(n), 18, 256, dtype=torch.bfloat16, device=CUDA) for n in (queries, lens, lens))
    attend = Attend(18, 18, 256)
    attended = attend.packed(q, k, v, Rows.build(queries, CUDA), Rows.build(lens, CUDA))
    samples = zip(q.float().split(queries), k.float().split(lens), v.float().split(lens), strict=True)
    assert relative(attended, torch.cat([native(*sample, 1) for sample in samples])) < 1e-2


@pytest.mark.parametrize("compiled", [False, True])
def test_cuda_graphs_give_the_same_latents(checkpoint: Checkpoint, compiled: bool) -> None:
    plain = load(checkpoint, torch.bfloat16, compiled)
    pipeline = load_pipeline(PartFolders.of(checkpoint.path), CUDA, torch.bfloat16)
    recording = ModelRunner(pipeline, CUDA, compiled=compiled, recorder=cuda_recorder)
    tall = Job(PROMPT, 64, 96, (7.0, 3.0, 7.0, 3.0), seed=2)  # the same number of tokens on a different grid
    for job in (*JOBS, tall, Job("b", 176, 96, TURBO), JOBS[0]):
        wanted, sample = (finish(each, start(each, checkpoint, job)) for each in (plain, recording))
        assert torch.equal(sample.latents, wanted.latents)
    wanted_batch, batch = ([start(each, checkpoint, job) for job in JOBS] for each in (plain, recording))
    for _ in range(3):
        plain.denoise_step(wanted_batch)
        recording.denoise_step(batch)
    for one, other in zip(batch, wanted_batch, strict=True):
        assert torch.equal(one.latents, other.latents)


@contextmanager
def synchronization_forbidden() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_does_not_synchronize_with_the_device(checkpoint: Checkpoint, compiled: bool) -> None:
    runner = load(checkpoint, torch.bfloat16, compiled)

    def samples() -> list[SampleState]:
        return [start(runner, checkpoint, job) for job in JOBS]

    first, second = samples(), samples()
    runner.denoise_step(first)
    with synchronization_forbidden():
        runner.denoise_step(second)
        runner.denoise_step(second)
        runner.denoise_step(second[:1])


def test_the_unconditional_pass_on_a_separate_device(checkpoint: Checkpoint, runner: ModelRunner) -> None:
    pipeline = load_pipeline(PartFolders.of(checkpoint.path), CUDA, torch.float32, uncond_device="cuda:0")
    beside = ModelRunner(pipeline, CUDA, uncond_device="cuda:0")
    wanted, sample = (finish(each, start(each, checkpoint, JOBS[0])) for each in (runner, beside))
    assert relative(sample.latents, wanted.latents) < 1e-4


def test_out_of_memory_is_not_fatal_and_memory_is_released(checkpoint: Checkpoint) -> None:
    runner, device = load(checkpoint, torch.bfloat16), Device(CUDA)
    device.peak_memory_bytes()
    with pytest.raises(torch.OutOfMemoryError) as raised:
        torch.empty(1 << 40, device=CUDA)
    assert device.is_out_of_memory(raised.value)
    assert not device.is_fatal(raised.value)
    device.release_memory()
    finish(runner, start(runner, checkpoint, JOBS[0]))
    assert 0 < device.peak_memory_bytes() < 1 << 32


def cause_a_device_fault() -> None:
    """Print whether the error is fatal, and whether it is out of memory."""
    values = torch.zeros(4, device=CUDA)
    try:
        values[torch.tensor([9], device=CUDA)]
        torch.cuda.synchronize()
    except Exception as error:
        device = Device(CUDA)
        print(device.is_fatal(error), device.is_out_of_memory(error))


def test_a_device_fault_is_fatal() -> None:
    """Runs in a separate process, because the device is unusable afterwards."""
    script = "from tests.cuda.test_engine import cause_a_device_fault; cause_a_device_fault()"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == "True False\n"
