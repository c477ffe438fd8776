"""Compare this engine with diffusers' pipeline on a CPU: `python -m benchmarks.versus`.

Both load one random checkpoint of the benchmark model (two transformers of 97M parameters, a text model of
36 layers, a scaled-down VAE of the published shape) and run V4_TURBO_12. Each variant has its own process.
The variants take turns after each step, so that other load affects all equally. diffusers runs with its
defaults (prompts padded to 2048 tokens, progress bar) and with its best options: no padding, no progress
bar, and the faster of plain and compiled blocks.

Of the 12 steps, `--steps` are run; the others count as the median of those after the first, over all
rounds. The images are compared after the steps that ran, to check that both sides do the same work.
"""

import argparse
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from itertools import product
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks import versus_http
from benchmarks.bench_model import DIT, write_bench_model
from benchmarks.variants import VARIANTS, Job, Run, image_seconds
from engine.environment import set_up_environment

# Minimum speedup over diffusers at its best, by dtype and side in pixels; 1 for other jobs.
BARS = {("float32", 256): 1.15, ("float32", 512): 1.15, ("bfloat16", 256): 1.3, ("bfloat16", 512): 1.4}
DEFAULTS_BAR = 3.0


def serve(connection: Connection, name: str, path: Path, dtype: str) -> None:
    """Receive jobs and send runs, after two small images that trigger compilation."""
    variant = VARIANTS[name](path, dtype)
    for warm_up in (Job(64, 30, 2), Job(96, 60, 2)):
        variant.run(warm_up)
    connection.send(None)

    def pause() -> None:
        connection.send(None)
        connection.recv()

    while (job := connection.recv()) is not None:
        connection.send(variant.run(job, pause))


class Turns:
    """The processes of all variants for one dtype."""

    def __init__(self, path: Path, dtype: str, names: list[str]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes: dict[str, Connection] = {}
        for name in names:
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(there, name, path, dtype), daemon=True)
            with patch.dict(os.environ):
                if name.startswith("ours"):
                    set_up_environment()
                process.start()
            here.recv()
            self.pipes[name] = here

    def run(self, job: Job, rounds: int) -> dict[str, list[Run]]:
        """Make one image per variant and round; the variants take turns after each step."""
        runs: dict[str, list[Run]] = {name: [] for name in self.pipes}
        for _ in range(rounds):
            for go in (job, *range(job.steps)):
                replies = {}
                for name, pipe in self.pipes.items():
                    pipe.send(go)
                    replies[name] = pipe.recv()
            for name, run in replies.items():
                runs[name].append(run)
        return runs

    def close(self) -> None:
        for pipe in self.pipes.values():
            pipe.send(None)


def best(runs: dict[str, list[Run]], *names: str) -> float:
    """Seconds per image of the fastest of these variants."""
    return min(image_seconds(runs[name]) for name in names if name in runs)


def difference(a: Run, b: Run) -> float:
    """Mean absolute difference of the pixel values, 0 to 255."""
    return float(np.abs(a.pixels.astype(int) - b.pixels).mean())


def mark(ratio: float, bar: float) -> str:
    return f"{ratio:5.2f}{' ' if ratio >= bar else '!'}"


def report(dtype: str, job: Job, runs: dict[str, list[Run]]) -> float:
    """Print one row, in which `!` marks a missed bar, and return this engine's seconds."""
    ours = best(runs, "ours", "ours, compiled")
    theirs = best(runs, "diffusers", "diffusers, compiled")
    bar = BARS.get((dtype, job.side), 1.0)
    cells = [f"{dtype:9} {job.side:5} {job.tokens:6}"]
    cells += [f"{best(runs, name):9.2f}" if name in runs else " " * 9 for name in VARIANTS]
    cells.append(f"{mark(theirs / ours, bar)} (bar {bar:4.2f})")
    if "diffusers, defaults" in runs:
        cells.append(
            f"{mark(best(runs, 'diffusers, defaults') / ours, DEFAULTS_BAR)} (bar {DEFAULTS_BAR:4.2f})"
        )
    apart = difference(runs[next(iter(runs))][-1], runs["diffusers"][-1])
    print("  ".join(cells), f" {apart:7.4f}", flush=True)
    return ours


HEADER = (
    f"{'dtype':9} {'side':>5} {'tokens':>6}  "
    + "  ".join(f"{name.replace('diffusers', 'd.').replace('compiled', 'comp.'):>9}" for name in VARIANTS)
    + "  against best       against defaults   difference of 255"
)


def compare(path: Path, options: argparse.Namespace) -> None:
    """Print the table of single images."""
    print(f"seconds an image, V4_TURBO_12, {torch.get_num_threads()} threads, {options.steps} steps run")
    print(HEADER, flush=True)
    for dtype in options.dtypes:
        turns = Turns(path, dtype, options.variants)
        seconds = {}
        for side, tokens in product(options.sizes, options.tokens):
            job = Job(side, tokens, options.steps)
            seconds[job] = report(dtype, job, turns.run(job, options.rounds))
        turns.close()
        print_growth(seconds)


def print_growth(seconds: dict[Job, float]) -> None:
    """Print how much time and work grow from the smallest to the largest job."""
    small, large = min(seconds, key=flops), max(seconds, key=flops)
    time_grew, work_grew = seconds[large] / seconds[small], flops(large) / flops(small)
    sizes = f"{small.side} px, {small.tokens} tokens, to {large.side} px, {large.tokens} tokens"
    print(f"from {sizes}: time x{time_grew:.1f}, FLOPs of the transformers x{work_grew:.1f}", flush=True)


def flops(job: Job) -> float:
    """FLOPs of both transformers in one step: matrix products and attention."""
    width = DIT["attention_head_dim"] * DIT["num_attention_heads"]
    image = (job.side // 16) ** 2
    total = 0.0
    for tokens in (image, image + job.tokens):
        products = 2 * tokens * (4 * width**2 + 3 * width * DIT["intermediate_size"])
        total += DIT["num_layers"] * (products + 4 * tokens**2 * width)
    return total


def several(choices: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    return lambda text: [choices(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.versus", description=__doc__)
    parser.add_argument("--sizes", type=several(int), default=[256, 512, 1024], help="pixels a side")
    parser.add_argument("--tokens", type=several(int), default=[30, 300, 1500], help="prompt tokens")
    parser.add_argument("--dtypes", type=several(str), default=["float32", "bfloat16"])
    parser.add_argument("--variants", type=lambda text: text.split(";"), default=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=12, help="steps to run of the 12, at least 2")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--no-http", action="store_true", help="skip the concurrent requests")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench-model"
        write_bench_model(path)
        compare(path, options)
        if not options.no_http:
            for dtype in options.dtypes:
                versus_http.compare(path, dtype, options.steps, options.rounds)


if __name__ == "__main__":
    main()
