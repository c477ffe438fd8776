"""The plan against the bytes that are counted: real tensors, and modules of the published widths on
`meta`."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.load import TEXT
from benchmarks.plans import published_plan
from benchmarks.random_checkpoint import write_checkpoint
from engine.checkpoint.loader import load_pipeline
from engine.config.model_config import ModelConfig
from engine.config.options import EngineOptions
from engine.config.part_configs import DiTConfig, VAEConfig
from engine.config.part_folders import PartFolders
from engine.memory import device_memory
from engine.memory.plan import IMITATION, UNCONDITIONAL, MemoryPlan
from engine.precision import PrecisionOptions
from engine.quantized import nf4
from engine.tuning.store import ChoiceStore
from engine.tuning.weights import widen_weights
from tests.engine.checkpoints import LAYOUTS
from tests.engine.conftest import Checkpoints
from tests.engine.memory import counted

PARTS = ("text_encoder", "conditional", "unconditional", "vae", "vae_encoder")
DTYPES = {4: torch.float32, 2: torch.bfloat16}
Published = Callable[..., MemoryPlan]
# Layout, and how its weights are kept and multiplied.
KEPT: list[tuple[str, PrecisionOptions]] = [
    *((layout, PrecisionOptions("stored")) for layout in ("bf16", "fp8", "nf4")),
    *((layout, PrecisionOptions("widened")) for layout in ("fp8", "nf4")),
    *(("bf16", PrecisionOptions(quantize=kind)) for kind in ("fp8", "nf4")),
    ("fp8", PrecisionOptions(matmul="fp8")),
    ("fp8", PrecisionOptions("widened", "fp8")),
    ("bf16", PrecisionOptions(matmul="fp8", quantize="fp8")),
]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """The plan of a checkpoint of the published widths, with a few layers in its transformers."""

    @lru_cache
    def make(layout: Any) -> MemoryPlan:
        folder = tmp_path_factory.mktemp(layout)
        write_checkpoint(folder, layout, DiTConfig(num_layers=3), TEXT, VAEConfig(), full=())
        return published_plan(folder)

    def plan(layout: str, precision: PrecisionOptions | None = None) -> MemoryPlan:
        made = make(layout)
        return replace(made, options=replace(made.options, precision=precision)) if precision else made

    return plan


@pytest.mark.parametrize(
    ("layout", "precision"),
    [
        *((layout, PrecisionOptions("stored")) for layout in LAYOUTS),
        ("official-fp8", PrecisionOptions("widened")),
        ("official-nf4", PrecisionOptions("widened")),
        ("official-fp8", PrecisionOptions("widened", "fp8")),
        ("official", PrecisionOptions(quantize="fp8")),
        ("diffusers", PrecisionOptions(quantize="nf4")),
    ],
)
def test_the_weights_are_those_that_are_loaded(
    checkpoints: Checkpoints, layout: str, precision: PrecisionOptions
) -> None:
    folder = checkpoints(layout).path
    options = EngineOptions(("cpu",), precision=precision)
    plan = replace(MemoryPlan.of(ModelConfig.load(folder), options), itemsize=2)
    pipeline = load_pipeline(PartFolders.of(folder), "cpu", torch.bfloat16, precision=precision)
    widen_weights(pipeline, precision, (7,), ChoiceStore(None))
    parts = {getattr(pipeline, name) for name in PARTS} - {None}
    loaded = sum(weight.nbytes for part in parts for weight in part.parameters())
    assert sum(plan.kept.values()) == pytest.approx(loaded, rel=0.003)


@pytest.mark.parametrize(("layout", "precision"), KEPT)
def test_weights_and_steps_are_within_5_percent_of_the_counted_bytes(
    published: Published, layout: str, precision: PrecisionOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nf4, "_CPU_CHUNK", 1 << 22)  # hundreds of pieces take seconds
    plan = published(layout, precision)
    models = counted.models(plan.config.folders, torch.bfloat16, precision)
    assert sum(plan.kept.values()) == pytest.approx(models.weight_bytes, rel=0.005)
    for side in (32, 64):
        step = counted.step(models.dit, [300], side, side)
        assert plan.work.step(side * side + 300) == pytest.approx(step, rel=0.05)


@pytest.mark.parametrize(("layout", "side"), [("bf16", 2048), ("fp8", 512)])
def test_an_image_alone_is_within_5_percent_of_the_counted_bytes(
    published: Published, layout: str, side: int
) -> None:
    plan, prompt = published(layout), 300
    models = counted.models(plan.config.folders, torch.bfloat16, PrecisionOptions("stored"))
    units = (
        counted.step(models.dit, [prompt], side // 16, side // 16),
        counted.encode(models.encoder, models.dit, prompt),
        counted.decode(models.vae, side // 8, side // 8),
    )
    planned = plan.alone(side, side, prompt, steps=12)
    assert planned == pytest.approx(models.weight_bytes + max(units), rel=0.05)


def test_a_step_of_a_schedule_takes_a_modulation_of_each_transformer(published: Published) -> None:
    plan = published("bf16")
    dit = counted.models(plan.config.folders, torch.bfloat16, PrecisionOptions()).dit
    modulation = dit.modulate(torch.zeros(36, device="meta"))
    more = plan.alone(512, 512, 300, steps=48) - plan.alone(512, 512, 300, steps=12)
    assert more == pytest.approx(2 * (modulation.blocks.nbytes + modulation.final.nbytes), rel=0.05)


@pytest.mark.parametrize("itemsize", DTYPES)
def test_each_unit_of_work_is_planned_by_itself(published: Published, itemsize: int) -> None:
    plan = replace(published("bf16"), itemsize=itemsize)
    models = counted.models(plan.config.folders, DTYPES[itemsize], PrecisionOptions())
    for prompts, rows in (([300], 64), ([0], 32), ([40, 100, 20], 32)):
        tokens = sum(prompts) + len(prompts) * rows * rows
        assert plan.work.step(tokens, len(prompts)) == pytest.approx(
            counted.step(models.dit, prompts, rows, rows), rel=0.07
        )
    for prompt in (300, 2048):
        assert plan.work.encode(prompt) == pytest.approx(
            counted.encode(models.encoder, models.dit, prompt), rel=0.1
        )
    for latents, images in ((128, 1), (256, 1), (64, 4)):
        tokens = images * (latents // 2) ** 2
        decode = counted.decode(models.vae, latents, latents, images)
        assert plan.work.decode(tokens) == pytest.approx(decode, rel=0.1)
        encode, paused = counted.encode_image(models.vae_encoder, 8 * latents, 8 * latents, images)
        assert plan.work.encode_image(tokens) == pytest.approx(encode, rel=0.1)
        assert plan.work.paused_encode_image(tokens) == pytest.approx(paused, rel=0.1)


def test_a_single_branch_checkpoint_plans_half_the_transformer_memory(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "fp8", DiTConfig(), TEXT, VAEConfig(), full=())
    both, single = published_plan(tmp_path), published_plan(tmp_path, is_guided=False)
    transformer = both.kept["transformer"]
    assert transformer == pytest.approx(9.3e9, rel=0.02)
    assert both.kept[UNCONDITIONAL] == transformer
    assert UNCONDITIONAL not in single.kept
    assert both.peak(1024, 1024) - single.peak(1024, 1024) == transformer


@pytest.mark.parametrize("files", ["fp8", "nf4"])
def test_what_files_in_another_format_would_take(published: Published, files: Any) -> None:
    as_files, plain = replace(published("bf16"), files=files), replace(published(files), files="plain")
    assert as_files.kept == pytest.approx(published(files).kept, rel=0.001)
    assert plain.kept == pytest.approx(published("bf16").kept, rel=0.001)


def test_an_offloaded_text_encoder_leaves_some_layers_on_the_device(published: Published) -> None:
    plan = published("fp8")
    offloaded = replace(plan, options=EngineOptions(offload="text-encoder"))
    assert offloaded.kept["text encoder"] == pytest.approx(plan.kept["text encoder"] * 6 / 36)
    on_cpu = replace(offloaded, is_cuda=False)
    assert on_cpu.kept == plan.kept


def test_adapters_and_sources_take_memory(published: Published) -> None:
    plan = published("fp8")
    adapting = replace(plan, options=EngineOptions(adapter_memory_gb=3.0))
    assert adapting.peak(1024, 1024) - plan.peak(1024, 1024) == 3 * 10**9
    without = {key: header for key, header in plan.headers["VAE"].items() if not key.startswith("encoder.")}
    alone = replace(plan, headers={**plan.headers, "VAE": without})
    assert plan.encodes_images
    assert not alone.encodes_images
    latents = 64 * 64 * 128 * 4
    sources = plan.options.max_running * 3 * latents
    assert plan.caches(1024, 1024) - alone.caches(1024, 1024) == sources
    assert plan.peak(1024, 1024) > alone.peak(1024, 1024) + sources


def test_an_adapter_instead_of_the_unconditional_transformer(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    config, file = ModelConfig.load(checkpoints("diffusers").path), tmp_path / "imitation.safetensors"
    options = EngineOptions(("cpu",), dtype="float32", uncond_adapter=str(file))
    assert not {UNCONDITIONAL, IMITATION} & MemoryPlan.of(config, options).kept.keys(), "no such file"
    save_file({"x.lora_A.weight": torch.zeros(2, 8, dtype=torch.bfloat16)}, file)
    assert MemoryPlan.of(config, options).kept[IMITATION] == 2 * 8 * 4


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
    monkeypatch.setattr(device_memory, "device_bytes", lambda device: 8_000_000_000)
    config = ModelConfig.load(checkpoints("diffusers").path)
    capacities = [
        MemoryPlan.of(config, EngineOptions(("cpu",) * workers), limit).capacity
        for workers, limit in ((1, None), (2, None), (1, 3.0), (1, 9.0))
    ]
    assert capacities == [8e9, 4e9, 3e9, 8e9]


def test_without_a_limit_the_memory_is_that_of_the_machine_or_its_cgroup(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device_memory, "host_memory", lambda: 10**9)
    assert device_memory.device_bytes("cpu") == 10**9


def test_a_gpu_is_asked_through_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_memory, "_cuda_bytes", lambda index: (0, 80_000_000_000)[index])
    assert device_memory.device_bytes("cuda:1") == 80_000_000_000 - device_memory.CUDA_CONTEXT_BYTES
    assert device_memory.device_bytes("cuda:0") is None, "unknown"
    assert device_memory.uses_cuda("cuda:0")
    assert not device_memory.uses_cuda(None)
