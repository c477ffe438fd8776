"""Measure one variant at the published sizes on a GPU: `python -m benchmarks.published --variant VARIANT`.

Creates random bfloat16 weights on the device: two transformers of 9.3 billion parameters, a text model of 8
billion and the VAE, 54 GB in all. Each variant needs a process of its own, so that the engine's torch
settings do not affect diffusers: `make gpu` runs them all. Of the 12 steps of V4_TURBO_12, `--steps` are run;
the others count as the median of those after the first. The first image of each size is a warm-up.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter
from torch import nn

from benchmarks import bench_model
from benchmarks.load import TEXT
from benchmarks.plans import published_plan
from benchmarks.random_checkpoint import write_checkpoint
from benchmarks.report import ROOT, Report, add_arguments, progress, several
from benchmarks.variants import TURBO, Job, Ours, Theirs, Variant, image_seconds, load_tokenizer, prompt
from engine.checkpoint.latents import LatentNorm
from engine.checkpoint.loader import Pipeline
from engine.config.part_configs import DiTConfig, TextEncoderConfig, VAEConfig
from engine.memory.plan import MemoryPlan
from engine.models.dit import DiT
from engine.models.text_encoder import TextEncoder
from engine.models.vae import VAE
from engine.precision import PrecisionOptions
from engine.quantized.fp8_product import multiply_in_fp8
from engine.quantized.kept import quantized_layers
from engine.quantized.layer import replace
from engine.quantized.quantize import can_quantize, quantized
from engine.runner.device import choose_device

GB = 1e9
BATCHES = (1, 2, 4, 8)
# fp8 weights, kept and multiplied in each way; the blocks are compiled.
FP8 = {
    "ours, fp8 stored": PrecisionOptions("stored"),
    "ours, fp8 widened": PrecisionOptions("widened"),
    "ours, fp8 products": PrecisionOptions(matmul="fp8"),
}
VARIANTS = ("ours", "ours, compiled", "ours, graphs", *FP8, "diffusers", "diffusers, compiled")
IMAGES = {"variant": "<19", "side": "4d", "tokens": "6d", "seconds": "8.3f", "step, ms": "8.1f"}
IMAGES |= {"once, ms": "8.1f", "GB": "5.1f", "planned, GB": "11.1f", "plan": "5.2f"}
BATCH = {"variant": "<19", "side": "4d", "tokens": "6d", "batch": "5d", "step, ms": "8.1f", "steps/s": "8.2f"}
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Sizes:
    """Configurations of the text encoder, the transformers and the VAE; {}: the published one."""

    text: dict[str, Any] = field(default_factory=lambda: TEXT)
    dit: dict[str, Any] = field(default_factory=dict)
    vae: dict[str, Any] = field(default_factory=dict)


SIZES = {
    "published": Sizes(),
    "bench": Sizes(bench_model.TEXT, bench_model.DIT, bench_model.VAE),
    "small": Sizes(
        bench_model.TEXT | {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2},
        {"num_layers": 2, "num_attention_heads": 1, "intermediate_size": 64, "llm_features_dim": 13 * 64},
        {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4},
    ),
}


@dataclass(frozen=True)
class Builder:
    """Builds the models of both sides with random weights on a device."""

    sizes: Sizes
    device: torch.device

    def ours(self) -> Pipeline:
        config = VAEConfig(**self.sizes.vae)
        vae = self._make(lambda: VAE(config)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        channels = 4 * config.latent_channels
        text = TypeAdapter(TextEncoderConfig).validate_python({"text_config": self.sizes.text})
        return Pipeline(
            text_encoder=self._make(lambda: TextEncoder(text)),
            conditional=self._make(lambda: DiT(DiTConfig(**self.sizes.dit))),
            unconditional=self._make(lambda: DiT(DiTConfig(**self.sizes.dit))),
            vae=vae,
            latent_norm=LatentNorm(*(torch.ones(channels, device=self.device) for _ in range(2))),
        )

    def theirs(self) -> Any:
        from diffusers import (
            AutoencoderKLFlux2,
            FlowMatchEulerDiscreteScheduler,
            Ideogram4Pipeline,
            Ideogram4Transformer2DModel,
        )
        from transformers import Qwen3VLConfig, Qwen3VLModel

        from tests.engine.checkpoints import VISION_CONFIG, train_tokenizer

        vision = VISION_CONFIG | {"out_hidden_size": self.sizes.text["hidden_size"]}
        text = Qwen3VLConfig(text_config=self.sizes.text, vision_config=vision)
        return Ideogram4Pipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=self._make(lambda: AutoencoderKLFlux2(**self.sizes.vae)),
            text_encoder=self._make(lambda: Qwen3VLModel(text)),
            tokenizer=train_tokenizer(),
            transformer=self._make(lambda: Ideogram4Transformer2DModel(**self.sizes.dit)),
            unconditional_transformer=self._make(lambda: Ideogram4Transformer2DModel(**self.sizes.dit)),
        )

    def _make(self, build: Callable[[], Module]) -> Module:
        """Build a module in bfloat16 with its default initialisation."""
        torch.set_default_dtype(torch.bfloat16)
        try:
            with self.device:
                module = build().eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(torch.float32)
        fill_embeddings(module)
        return module


def fill_embeddings(module: nn.Module) -> None:
    """Fill the embeddings, which the engine leaves uninitialised."""
    for part in module.modules():
        if isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=0.02)


def quantize(made: Pipeline, precision: PrecisionOptions) -> None:
    """Quantise the weights to fp8, layer by layer, and keep and multiply them as `precision` says."""
    for part in (made.text_encoder, made.conditional, made.unconditional):
        for name, layer in list(part.named_modules()):
            if can_quantize(layer, "fp8"):
                replace(part, name, quantized(layer, "fp8"))
        if precision.matmul == "fp8":
            multiply_in_fp8(part)
        if precision.weights == "widened":
            for layer in quantized_layers(part):
                layer.widen(torch.bfloat16)


def weight_bytes(variant: str, sizes: Sizes) -> int:
    """Bytes of the weights of a variant, whose modules are built on `meta`."""
    builder = Builder(sizes, torch.device("meta"))
    if variant.startswith("ours"):
        made = builder.ours()
        parts: list[Any] = [made.text_encoder, made.conditional, made.unconditional, made.vae]
    else:
        parts = [part for part in builder.theirs().components.values() if isinstance(part, nn.Module)]
    return sum(parameter.nbytes for part in parts for parameter in part.parameters())


def build(variant: str, sizes: Sizes, device: torch.device) -> Variant:
    """The variant with its model on the device."""
    builder, compiled = Builder(sizes, device), variant.endswith(("compiled", "graphs")) or variant in FP8
    if variant.startswith("ours"):  # needs neither diffusers nor transformers
        tokenizer, made = load_tokenizer(ROOT / "models" / "demo"), builder.ours()
        if variant in FP8:
            quantize(made, FP8[variant])
        recorded = variant.endswith("graphs") and device.type == "cuda"
        return Ours(made, tokenizer, compiled, recorded)
    pipeline = builder.theirs()
    with TemporaryDirectory() as folder:
        pipeline.tokenizer.save_pretrained(f"{folder}/tokenizer")
        return Theirs(pipeline, load_tokenizer(Path(folder)), compiled)


def plan_of(sizes: Sizes, variant: str) -> MemoryPlan:
    """The plan of the engine for a checkpoint of these sizes, of which only the headers are written."""
    with TemporaryDirectory() as folder:
        configs = DiTConfig(**sizes.dit), sizes.text, VAEConfig(**sizes.vae)
        write_checkpoint(Path(folder), "fp8" if variant in FP8 else "bf16", *configs, full=())
        return published_plan(Path(folder), precision=FP8.get(variant, PrecisionOptions()), edits=False)


def planned(plan: MemoryPlan | None, job: Job, measured: float | None) -> dict[str, float | None]:
    """The memory that the plan expects for a job, and its ratio to the measured peak."""
    gb = plan.alone(job.side, job.side, job.tokens, TURBO.num_inference_steps) / GB if plan else None
    return {"planned, GB": gb, "plan": gb / measured if gb and measured else None}


def image(
    report: Report, name: str, variant: Variant, job: Job, rounds: int, plan: MemoryPlan | None
) -> None:
    """Add the row of one job."""
    variant.run(Job(job.side, job.tokens, 2))
    runs = [variant.run(job) for _ in range(rounds)]
    step = median(seconds for run in runs for seconds in run.steps)
    times = {"seconds": image_seconds(runs), "step, ms": step * 1000}
    times["once, ms"] = (median(run.once for run in runs) - step) * 1000
    peak = peak_memory()
    cells = times | {"GB": peak} | planned(plan, job, peak)
    report.add("images", variant=name, side=job.side, tokens=job.tokens, **cells)


def batch(report: Report, name: str, ours: Ours, side: int, tokens: int, size: int, steps: int) -> None:
    """Add the row of one batch of images of one side."""
    text = prompt(ours.tokenizer, tokens)
    samples = [ours.start(side, text, seed) for seed in range(size)]
    ours.step(samples)
    ours.step(samples)
    taken = []
    for _ in range(steps):
        started = perf_counter()
        ours.step(samples)
        taken.append(perf_counter() - started)
    step = median(taken)
    cells = {"batch": size, "step, ms": step * 1000, "steps/s": size / step}
    report.add("batches", variant=name, side=side, tokens=tokens, **cells)


def peak_memory() -> float | None:
    """Peak device memory in GB since the last call; None without CUDA."""
    if not torch.cuda.is_available():
        return None
    peak = torch.cuda.max_memory_allocated() / GB
    torch.cuda.reset_peak_memory_stats()
    return peak


@torch.inference_mode()
def measure(options: argparse.Namespace) -> None:
    """Print a row for each job and batch."""
    report = Report("published", options, images=IMAGES, batches=BATCH)
    variant = build(options.variant, SIZES[options.model_size], choose_device(None))
    plan = plan_of(SIZES[options.model_size], options.variant) if isinstance(variant, Ours) else None
    for side, tokens in progress(list(product(options.sizes, options.tokens)), options.variant):
        image(report, options.variant, variant, Job(side, tokens, options.steps), options.rounds, plan)
    sizes = list(product(options.batch_sizes, options.tokens, BATCHES))
    for side, tokens, size in progress(sizes, f"{options.variant}, batches"):
        assert isinstance(variant, Ours), "batches are measured of the engine only"
        batch(report, options.variant, variant, side, tokens, size, options.steps)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.published", description=__doc__)
    made.add_argument("--variant", choices=VARIANTS, default="ours, compiled")
    made.add_argument("--sizes", type=several(int), default=[256, 512, 1024, 2048], help="pixels a side")
    made.add_argument("--tokens", type=several(int), default=[100], help="prompt tokens")
    made.add_argument("--batch-sizes", type=several(int), default=[], help="batches: pixels a side")
    made.add_argument("--steps", type=int, default=6, help="steps to run of the 12, at least 2")
    made.add_argument("--rounds", type=int, default=2)
    made.add_argument("--model-size", choices=SIZES, default="published", help="bench, small: for a CPU")
    add_arguments(made)
    return made


if __name__ == "__main__":
    measure(parser().parse_args())
