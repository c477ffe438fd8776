"""Adapters on a GPU: loaded beside the steps, and applied as on the CPU in float32."""

import hashlib
import select
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.adapters.adapter_file import both_configs
from engine.adapters.store import AdapterStore
from engine.checkpoint.loader import load_pipeline
from engine.config.options import EngineOptions
from engine.config.part_folders import PartFolders
from engine.kernels.low_rank import Kernel, by_span, stacked
from engine.request import AdapterUse
from engine.runner.model_runner import ModelRunner
from tests.engine.adapters import files
from tests.engine.adapters.uses import Held, begin
from tests.engine.checkpoints import Checkpoint
from tests.engine.conftest import Checkpoints, finish, finish_all, relative
from tests.engine.reference import Job

CUDA = torch.device("cuda")
JOB = Job("a poster that says HELLO", 96, 64, (7.0, 1.0, 3.0))


def uses(folder: Path, runner: ModelRunner) -> list[AdapterUse]:
    """Two adapters, and one of them again with another scale, each under the digest of its file."""
    config = runner.pipeline.conditional.config
    written = [files.write(folder / f"{seed}.safetensors", files.peft(config, seed=seed)) for seed in (1, 2)]
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in written]
    first, second = (
        AdapterUse(file.stem, str(file), digest, 0.8) for file, digest in zip(written, digests, strict=True)
    )
    return [first, second, replace(first, scale=-0.5)]


def load(store: AdapterStore, wanted: list[AdapterUse]) -> None:
    store.update(wanted, ())
    while not all(store.is_resident(use.digest) for use in wanted):
        assert store.error(wanted) is None
        assert select.select([store], [], [], 60)[0]
        store.update(wanted, ())


@pytest.mark.parametrize(
    ("layout", "dtype", "compiled", "products", "tolerance"),
    [
        ("diffusers", torch.float32, False, stacked, 1e-4),
        ("diffusers", torch.bfloat16, True, stacked, 0.05),
        ("official-fp8", torch.bfloat16, False, by_span, 0.05),
        ("official-nf4", torch.bfloat16, True, by_span, 0.05),
    ],
)
def test_a_batch_with_adapters_matches_each_alone_on_the_cpu(
    checkpoints: Checkpoints,
    tmp_path: Path,
    layout: str,
    dtype: torch.dtype,
    compiled: bool,
    products: Kernel,
    tolerance: float,
) -> None:
    checkpoint: Checkpoint = checkpoints(layout)
    folders, held = PartFolders.of(checkpoint.path), Held()
    here = ModelRunner(load_pipeline(folders, "cpu", torch.float32), "cpu", adapters=held)
    pipeline = load_pipeline(folders, CUDA, dtype)
    pipeline.conditional.low_rank.kernel = products
    store = AdapterStore.of(pipeline, EngineOptions(adapter_memory_gb=0.1))
    there = ModelRunner(pipeline, CUDA, compiled=compiled, adapters=store)
    wanted = uses(tmp_path, here)
    load(store, wanted)
    for use in wanted:
        held.use(here, Path(use.path))
        held[use.digest] = held[use.path]
    jobs = [(replace(JOB, seed=seed), (use,)) for seed, use in enumerate(wanted)]
    jobs.append((JOB, ()))
    samples = [begin(there, checkpoint, job, *each) for job, each in jobs]
    finish_all(there, samples)
    for (job, each), sample in zip(jobs, samples, strict=True):
        alone = finish(here, begin(here, checkpoint, job, *each))
        assert relative(sample.latents, alone.latents) < tolerance


def test_an_adapter_that_left_the_device_returns_from_the_hosts_memory(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    pipeline = load_pipeline(PartFolders.of(checkpoint.path), CUDA, torch.bfloat16)
    config = pipeline.conditional.config
    runner = ModelRunner(pipeline, CUDA)
    first, second, _ = uses(tmp_path, runner)
    size = sum(tensor.nbytes // 2 for tensor in files.peft(config).values())
    devices = {"conditional": CUDA, "unconditional": CUDA}
    store = AdapterStore(both_configs(config, None), devices, torch.bfloat16, size)  # type: ignore[arg-type]
    load(store, [first])
    load(store, [second])
    Path(first.path).unlink()
    load(store, [first])
    assert all(tensor.is_cuda for tensor in store[first.digest].tensors())
