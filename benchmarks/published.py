"""Compare this engine with diffusers on one GPU at the published sizes: `python -m benchmarks.published`.

Creates random bfloat16 weights on the device: two transformers of 9.3 billion parameters, a text model of 8
billion and the VAE, 54 GB in all. The variants run one after the other in separate processes, so that the
engine's torch settings do not affect diffusers. Of the 12 steps of V4_TURBO_12, `--steps` are run; the
others count as the median of those after the first. The first image of each size is a warm-up.
"""

import argparse
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch import nn

from benchmarks import bench_model
from benchmarks.load import TEXT
from benchmarks.parts import apart
from benchmarks.variants import Job, Ours, Theirs, Variant, image_seconds, load_tokenizer, prompt
from benchmarks.versus import several
from engine.checkpoint.loader import LatentNorm, Pipeline
from engine.config.part_configs import TextConfig, TextEncoderConfig
from engine.models.dit import DiT, DiTConfig
from engine.models.text_encoder import TextEncoder
from engine.models.vae import VAE, VAEConfig
from engine.runner.device import choose_device
from tests.engine.checkpoints import VISION_CONFIG, train_tokenizer

GB = 1e9
BATCHES = (1, 2, 4, 8)
Module = TypeVar("Module", bound=nn.Module)


class Sizes:
    """Builds the models of both sides on the device, at published or benchmark model sizes."""

    def __init__(self, device: torch.device, bench: bool) -> None:
        self.device = device
        self.text = bench_model.TEXT if bench else TEXT
        self.dit: dict[str, Any] = bench_model.DIT if bench else {}
        self.vae: dict[str, Any] = bench_model.VAE if bench else {}

    def ours(self) -> Pipeline:
        config = VAEConfig(**self.vae)
        vae = self._make(lambda: VAE(config)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        channels = 4 * config.latent_channels
        return Pipeline(
            text_encoder=self._make(lambda: TextEncoder(TextEncoderConfig(TextConfig(**self.text)))),
            conditional=self._make(lambda: DiT(DiTConfig(**self.dit))),
            unconditional=self._make(lambda: DiT(DiTConfig(**self.dit))),
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

        vision = VISION_CONFIG | {"out_hidden_size": self.text["hidden_size"]}
        text = Qwen3VLConfig(text_config=self.text, vision_config=vision)
        return Ideogram4Pipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=self._make(lambda: AutoencoderKLFlux2(**self.vae)),
            text_encoder=self._make(lambda: Qwen3VLModel(text)),
            tokenizer=train_tokenizer(),
            transformer=self._make(lambda: Ideogram4Transformer2DModel(**self.dit)),
            unconditional_transformer=self._make(lambda: Ideogram4Transformer2DModel(**self.dit)),
        )

    def _make(self, build: Callable[[], Module]) -> Module:
        """Build a module in bfloat16 with its default initialisation."""
        torch.set_default_dtype(torch.bfloat16)
        try:
            with self.device:
                return build().eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(torch.float32)


def build(name: str, sizes: Sizes) -> Variant:
    """The variant `name` with its model."""
    with TemporaryDirectory() as folder:
        train_tokenizer().save_pretrained(f"{folder}/tokenizer")
        tokenizer = load_tokenizer(Path(folder))
    compiled = name.endswith(("compiled", "graphs"))
    if name.startswith("ours"):
        return Ours(sizes.ours(), tokenizer, compiled, recorded=name.endswith("graphs"))
    return Theirs(sizes.theirs(), tokenizer, compiled, defaults=name.endswith("defaults"))


@torch.inference_mode()
def measure(name: str, jobs: list[Job], options: argparse.Namespace) -> dict[Job, float]:
    """Print the rows of one variant and return the seconds per image."""
    variant = build(name, Sizes(choose_device(None), options.bench))
    seconds = compare(name, variant, jobs, options.rounds)
    if name == "ours, compiled":
        print(f"{'side':>5} {'batch':>6} {'step, ms':>9} {'steps/s':>9}")
        for side in options.batch_sizes:
            batch(variant, side, options.steps)  # type: ignore[arg-type]
    return seconds


def compare(name: str, variant: Variant, jobs: list[Job], rounds: int) -> dict[Job, float]:
    """Print a row for each job and return the seconds per image."""
    seconds = {}
    for job in jobs:
        variant.run(Job(job.side, job.tokens, 2))
        runs = [variant.run(job) for _ in range(rounds)]
        step = median(seconds for run in runs for seconds in run.steps)
        once = median(run.once for run in runs) - step
        seconds[job] = image_seconds(runs)
        print(
            f"{name:20} {job.side:5} {job.tokens:6} {seconds[job]:9.3f} {step * 1000:9.1f}"
            f" {once * 1000:9.1f} {memory():7.1f}",
            flush=True,
        )
    return seconds


def print_ratios(seconds: dict[str, dict[Job, float]], jobs: list[Job]) -> None:
    """Print how many times slower the faster of plain and compiled diffusers is than each engine variant."""
    theirs = [seconds[name] for name in ("diffusers", "diffusers, compiled") if name in seconds]
    for name, ours in seconds.items():
        if name.startswith("ours") and theirs:
            ratios = ", ".join(
                f"{job.side} px {min(each[job] for each in theirs) / ours[job]:.2f}" for job in jobs
            )
            print(f"diffusers at its best against {name}: {ratios}")


def batch(ours: Ours, side: int, steps: int) -> None:
    """Print step times of several batch sizes."""
    text = prompt(ours.tokenizer, 100)
    for size in BATCHES:
        samples = [ours.start(side, text, seed) for seed in range(size)]
        ours.step(samples)
        ours.step(samples)
        taken = []
        for _ in range(steps):
            started = perf_counter()
            ours.step(samples)
            taken.append(perf_counter() - started)
        print(f"{side:5} {size:6} {median(taken) * 1000:9.1f} {size / median(taken):9.2f}", flush=True)


def memory() -> float:
    """Peak device memory in GB since the last call; 0 without CUDA."""
    if not torch.cuda.is_available():
        return 0.0
    peak = torch.cuda.max_memory_allocated() / GB
    torch.cuda.reset_peak_memory_stats()
    return peak


def main() -> None:
    names = ["ours", "ours, compiled", "diffusers", "diffusers, compiled"]
    names += ["ours, graphs"] if torch.cuda.is_available() else []
    parser = argparse.ArgumentParser(prog="python -m benchmarks.published", description=__doc__)
    parser.add_argument("--sizes", type=several(int), default=[256, 512, 1024, 2048], help="pixels a side")
    parser.add_argument("--tokens", type=several(int), default=[100], help="prompt tokens")
    parser.add_argument("--variants", type=lambda text: text.split(";"), default=names)
    parser.add_argument("--batch-sizes", type=several(int), default=[256, 512], help="batches: pixels a side")
    parser.add_argument("--steps", type=int, default=6, help="steps to run of the 12, at least 2")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--bench", action="store_true", help="use benchmark model sizes, for a CPU")
    options = parser.parse_args()
    device = choose_device(None)
    print(torch.cuda.get_device_name() if device.type == "cuda" else "cpu", torch.__version__)
    print(f"{'':20} {'side':>5} {'tokens':>6} {'image, s':>9} {'step, ms':>9} {'once, ms':>9} {'GB':>7}")
    jobs = [Job(*job, options.steps) for job in product(options.sizes, options.tokens)]
    seconds = {name: apart(measure, name, jobs, options) for name in options.variants}
    print_ratios(seconds, jobs)


if __name__ == "__main__":
    main()
