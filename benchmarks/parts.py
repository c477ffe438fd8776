"""Measure the gain of each optimisation separately: `python -m benchmarks.parts`.

Uses the benchmark model, a prompt of 30 tokens and V4_TURBO_12. "seconds" is one run of the part without the
optimisation, and "slower" how much longer an image takes. For results that the engine computes once, that is
the cost of computing them in every step. Figures are minima over the runs.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.bench_model import write_bench_model
from benchmarks.report import Report, Row, add_arguments, progress, several
from benchmarks.variants import TURBO, Ours, prompt
from engine.environment import set_up_environment
from engine.kernels.packing import Packing
from engine.models.resumable import drain
from engine.tuning.cases import OPERATIONS

STEPS = TURBO.num_inference_steps
SLOWDOWN = {"dtype": "<8", "side": "4d", "without": "<42", "seconds": "8.4f", "slower": "+8.1%"}


@dataclass
class Bench:
    """A loaded engine and a sample before its first step."""

    path: Path
    side: int
    dtype: str
    tokens: int = 30
    compiled: bool = False
    keep_memory: bool = True
    kernels: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        self.engine = Ours.load(self.path, self.dtype, self.compiled, self.keep_memory, self.kernels)
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


def defaults(picked: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """The first candidate of each operation for which one was picked."""
    operations = dict.fromkeys(case.partition(".")[0] for case in picked)
    return tuple((name, OPERATIONS[name][0].name) for name in operations)


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


def measure(path: Path, side: int, dtype: str, runs: int) -> list[Row]:
    """The rows of one image size: the image, and how much longer it takes without each optimisation."""
    bench = Bench(path, side, dtype)
    step, encode, kept = (least(part, runs) for part in (bench.step, bench.encode, bench.decode))
    image = encode + STEPS * step + kept
    rows: list[Row] = []

    def add(without: str, seconds: float, slower: float | None) -> None:
        """`slower`: seconds that an image takes longer."""
        share = None if slower is None else slower / image
        rows.append({"dtype": dtype, "side": side, "without": without, "seconds": seconds, "slower": share})

    add("baseline: seconds per image", image, None)
    add("prompt cache", encode, encode)
    for without, run in (
        ("text projected once", bench.project_text),
        ("modulations computed once per schedule", bench.modulate),
        ("rotary table and packing computed once", bench.lay_out),
    ):
        seconds = least(run, runs)
        add(without, seconds, (STEPS - 1) * seconds)
    plain = least(Bench(path, side, dtype, kernels=defaults(bench.engine.picked)).step, runs)
    add("kernels chosen by measurement", plain, STEPS * (plain - step))
    alike = apart(stepping, path, side, dtype, runs, MKL_NUM_STRIPES="0")
    add("`MKL_NUM_STRIPES`", alike, STEPS * (alike - step))
    given_back = apart(decoding, path, side, dtype, runs)
    add("freed memory retained", given_back, given_back - kept)
    bench.runner.pipeline.vae.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    contiguous = least(bench.decode, runs)
    add("channels-last VAE", contiguous, contiguous - kept)
    compiled = least(Bench(path, side, dtype, compiled=True).step, runs)
    add("compiled blocks", compiled, STEPS * (step - compiled))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parts", description=__doc__)
    parser.add_argument("--sizes", type=several(int), default=[256, 512], help="pixels a side")
    parser.add_argument("--dtypes", type=several(str), default=["float32"], help="of float32, bfloat16")
    parser.add_argument("--runs", type=int, default=3)
    add_arguments(parser)
    options = parser.parse_args()
    set_up_environment()
    report = Report("parts", options, slowdown=SLOWDOWN)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench-model"
        write_bench_model(path)
        for dtype, side in progress(list(product(options.dtypes, options.sizes)), "parts"):
            for row in apart(measure, path, side, dtype, options.runs):
                report.add("slowdown", **row)


if __name__ == "__main__":
    main()
