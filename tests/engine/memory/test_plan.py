"""The plan against the bytes that are counted: real tensors, and modules of the published widths on
`meta`."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.load import TEXT
from benchmarks.random_checkpoint import write_checkpoint
from benchmarks.roofline import published_plan
from engine.checkpoint.loader import load_pipeline
from engine.config.model_config import ModelConfig
from engine.config.options import EngineOptions
from engine.config.part_configs import DiTConfig, VAEConfig
from engine.config.part_folders import PartFolders
from engine.memory import device_memory
from engine.memory import plan as module
from engine.memory.plan import UNCONDITIONAL, MemoryPlan
from tests.engine.conftest import Checkpoints
from tests.engine.memory import counted

DTYPES = {4: torch.float32, 2: torch.bfloat16}
Published = Callable[[str], MemoryPlan]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """The plan of a checkpoint of the published widths, with a few layers in its transformers."""

    def make(layout: Any) -> MemoryPlan:
        folder = tmp_path_factory.mktemp(layout)
        write_checkpoint(folder, layout, DiTConfig(num_layers=3), TEXT, VAEConfig(), full=())
        return published_plan(folder)

    return lru_cache(make)


def test_the_weights_are_those_that_are_loaded(checkpoints: Checkpoints, layout: str) -> None:
    folder = checkpoints(layout).path
    for dtype in ("float32", "bfloat16"):
        plan = MemoryPlan.of(ModelConfig.load(folder), EngineOptions(("cpu",), dtype=dtype))
        plan = replace(plan, itemsize=getattr(torch, dtype).itemsize)
        pipeline = load_pipeline(PartFolders.of(folder), "cpu", getattr(torch, dtype))
        assert sum(plan.kept.values()) == pytest.approx(pipeline.weight_bytes, rel=0.003)


@pytest.mark.parametrize(("layout", "side"), [("bf16", 512), ("bf16", 2048), ("fp8", 1024), ("nf4", 1024)])
def test_the_plan_is_within_5_percent_of_the_counted_bytes(
    published: Published, layout: str, side: int
) -> None:
    plan, prompt = published(layout), 300
    encoder, dit, vae = counted.models(plan.config.folders, torch.bfloat16)
    units = (
        counted.step(dit, [prompt], side // 16, side // 16),
        counted.encode(encoder, dit, prompt),
        counted.decode(vae, side // 8, side // 8),
    )
    bytes_counted = counted.weights(plan.config.folders, torch.bfloat16) + max(units)
    assert plan.alone(side, side, prompt, steps=12) == pytest.approx(bytes_counted, rel=0.05)


@pytest.mark.parametrize("itemsize", DTYPES)
def test_each_unit_of_work_is_planned_by_itself(published: Published, itemsize: int) -> None:
    plan = replace(published("bf16"), itemsize=itemsize)
    encoder, dit, vae = counted.models(plan.config.folders, DTYPES[itemsize])
    for prompts, rows in (([300], 64), ([0], 32), ([40, 100, 20], 32)):
        tokens = sum(prompts) + len(prompts) * rows * rows
        assert plan.work.step(tokens, len(prompts)) == pytest.approx(
            counted.step(dit, prompts, rows, rows), rel=0.07
        )
    for prompt in (300, 2048):
        assert plan.work.encode(prompt) == pytest.approx(counted.encode(encoder, dit, prompt), rel=0.1)
    for latents, images in ((64, 1), (128, 1), (256, 1), (64, 4), (128, 3)):
        tokens = images * (latents // 2) ** 2
        assert plan.work.decode(tokens) == pytest.approx(
            counted.decode(vae, latents, latents, images), rel=0.1
        )


def test_a_single_branch_checkpoint_plans_half_the_transformer_memory(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "fp8", DiTConfig(), TEXT, VAEConfig(), full=())
    both, single = published_plan(tmp_path), published_plan(tmp_path, is_guided=False)
    transformer = both.kept["transformer"]
    assert transformer == pytest.approx(9.3e9, rel=0.02)
    assert both.kept[UNCONDITIONAL] == transformer
    assert UNCONDITIONAL not in single.kept
    assert both.peak(1024, 1024) - single.peak(1024, 1024) == transformer


@pytest.mark.parametrize("keep", ["fp8", "nf4"])
def test_what_another_format_would_take(published: Published, keep: Any) -> None:
    assert published("bf16").weights(keep) == pytest.approx(published(keep).kept, rel=0.001)
    assert published(keep).weights("plain") == pytest.approx(published("bf16").kept, rel=0.001)


def test_an_offloaded_text_encoder_leaves_some_layers_on_the_device(published: Published) -> None:
    plan = published("fp8")
    offloaded = replace(plan, options=EngineOptions(offload="text-encoder"))
    assert offloaded.kept["text encoder"] == pytest.approx(plan.kept["text encoder"] * 6 / 36)
    on_cpu = replace(offloaded, is_cuda=False)
    assert on_cpu.kept == plan.kept


def test_graphs_are_planned_where_they_are_recorded(published: Published) -> None:
    plan = published("bf16")
    assert plan.graphs() == 0
    graphs = replace(plan, options=EngineOptions(cuda_graphs=True))
    assert 0.3e9 < graphs.graphs() < 2e9
    assert replace(graphs, is_cuda=False).graphs() == 0


def test_a_transformer_on_another_device_is_not_planned(checkpoints: Checkpoints) -> None:
    config = ModelConfig.load(checkpoints("diffusers").path)
    assert UNCONDITIONAL in MemoryPlan.of(config, EngineOptions(("cpu",))).kept
    assert UNCONDITIONAL not in MemoryPlan.of(config, EngineOptions(("cpu",), uncond_device="cuda:1")).kept


def test_the_memory_of_the_machine_is_shared_by_its_workers(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "device_bytes", lambda device: 8_000_000_000)
    config = ModelConfig.load(checkpoints("diffusers").path)
    capacities = [
        MemoryPlan.of(config, EngineOptions(("cpu",) * workers), limit).capacity
        for workers, limit in ((1, None), (2, None), (1, 3.0), (1, 9.0))
    ]
    assert capacities == [8e9, 4e9, 3e9, 8e9]


def test_without_a_limit_the_memory_is_that_of_the_machine_or_its_cgroup(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device_memory, "memory_limits", lambda: iter(()))
    host = device_memory.device_bytes("cpu")
    assert host is not None
    assert host > 1e9
    monkeypatch.setattr(device_memory, "memory_limits", lambda: iter((10**9, 2 * 10**9)))
    assert device_memory.device_bytes("cpu") == 10**9


def test_a_gpu_is_asked_through_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_memory, "_cuda_bytes", lambda index: (0, 80_000_000_000)[index])
    assert device_memory.device_bytes("cuda:1") == 80_000_000_000 - device_memory.CUDA_CONTEXT_BYTES
    assert device_memory.device_bytes("cuda:0") is None, "unknown"
    assert device_memory.uses_cuda("cuda:0")
    assert not device_memory.uses_cuda(None)
