"""Measure the gain of each optimisation separately: `python -m benchmarks.parts`.

Uses the benchmark model, a prompt of 30 tokens and V4_TURBO_12. For results that the engine computes once,
the table shows the cost of computing them in every step; for other optimisations, the cost of leaving them
out. Figures are minima over the runs.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.bench_model import write_bench_model
from benchmarks.variants import TURBO, Ours, prompt
from engine.environment import set_up_environment
from engine.kernels.packing import Packing
from engine.models.resumable import drain

STEPS = TURBO.num_inference_steps


@dataclass
class Bench:
    """A loaded engine and a sample before its first step."""

    path: Path
    side: int
    dtype: str
    tokens: int = 30
    compiled: bool = False
    keep_memory: bool = True

    def __post_init__(self) -> None:
        self.engine = Ours.load(self.path, self.dtype, self.compiled, set_up=self.keep_memory)
        self.runner = self.engine.runner
        self.text = prompt(self.engine.tokenizer, self.tokens)
        self.sample = self.engine.start(self.side, self.text)

    def encode(self) -> None:
        self.runner.clear_cache()
        self.engine.start(self.side, self.text)

    def step(self) -> None:
        self.sample.step_index = 0
        self.runner.denoise_step([self.sample])

    def decode(self) -> None:
        drain(self.runner.decode([self.sample]))

    def project_text(self) -> None:
        dit = self.runner.pipeline.conditional
        dit.project_text(torch.zeros(self.tokens, dit.config.llm_features_dim))

    def modulate(self) -> None:
        pipeline = self.runner.pipeline
        for dit in (pipeline.conditional, pipeline.unconditional):
            dit.modulate(torch.tensor([0.5]))

    def lay_out(self) -> None:
        dit, grid = self.runner.pipeline.conditional, self.side // 16
        for text in (self.tokens, 0):
            dit.rotary(text, grid, grid)
            Packing.build([text], [grid * grid], "cpu")


def least(run: Callable[[], None], runs: int) -> float:
    """Minimum seconds of `runs` runs, after one warm-up run."""
    taken = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        with torch.inference_mode():
            run()
        taken.append(time.perf_counter() - started)
    return min(taken[1:])


def decoding(path: Path, side: int, dtype: str, runs: int) -> float:
    """Seconds of decoding without the engine's allocator settings."""
    return least(Bench(path, side, dtype, keep_memory=False).decode, runs)


def stepping(path: Path, side: int, dtype: str, runs: int) -> float:
    """Seconds of a step with the environment of this process."""
    return least(Bench(path, side, dtype).step, runs)


def apart(run: Callable[..., Any], *job: Any, **environment: str) -> Any:
    """Call `run` in a new process, for settings that cannot be undone."""
    with patch.dict(os.environ, environment), ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(run, *job).result()


def print_row(what: str, seconds: float, image: float, without: float) -> None:
    """Print `seconds` of one run and the slowdown of an image `without` the optimisation."""
    print(f"{what:58} {seconds * 1000:9.1f} ms {without / image - 1:+8.1%}", flush=True)


def measure(path: Path, side: int, dtype: str, runs: int) -> None:
    """Print all rows for one image size."""
    bench = Bench(path, side, dtype)
    step, encode, kept = (least(part, runs) for part in (bench.step, bench.encode, bench.decode))
    image = encode + STEPS * step + kept
    print(
        f"{side} px, {dtype}: {image:.2f} s an image: {encode:.2f} encoding, "
        f"{STEPS} x {step:.3f}, {kept:.2f} decoding"
    )
    print_row("prompt not cached", encode, image - encode, image)
    for what, run in (
        ("text projected in every step", bench.project_text),
        ("modulations in every step", bench.modulate),
        ("rotary tables and packing in every step", bench.lay_out),
    ):
        seconds = least(run, runs)
        print_row(what, seconds, image, image + (STEPS - 1) * seconds)
    with patch("engine.kernels.attention._wants_products", lambda *_: False):
        fused = least(bench.step, runs)
    print_row("the fused attention kernel (a step)", fused, image, image + STEPS * (fused - step))
    with patch("engine.runner.model_runner.wants_prepacked_weights", lambda _: False):
        plain = least(Bench(path, side, dtype).step, runs)
    print_row("weights not prepacked (a step)", plain, image, image + STEPS * (plain - step))
    alike = apart(stepping, path, side, dtype, runs, MKL_NUM_STRIPES="0")
    print_row("MKL_NUM_STRIPES=0 (a step)", alike, image, image + STEPS * (alike - step))
    given_back = apart(decoding, path, side, dtype, runs)
    print_row("freed memory returned to the system (decoding)", given_back, image, image + given_back - kept)
    bench.runner.pipeline.vae.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    contiguous = least(bench.decode, runs)
    print_row("VAE weights not channels-last (decoding)", contiguous, image, image + contiguous - kept)
    compiled = least(Bench(path, side, dtype, compiled=True).step, runs)
    print_row("blocks not compiled (--compile, a step)", step, image - STEPS * (step - compiled), image)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parts", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512], help="pixels a side")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    set_up_environment()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench-model"
        write_bench_model(path)
        print(f"{'without the optimisation':58} {'takes':>12} {'image':>8}", flush=True)
        for side in options.sizes:
            apart(measure, path, side, options.dtype, options.runs)


if __name__ == "__main__":
    main()
