"""Compare this engine with diffusers' pipeline on a CPU: `python -m benchmarks.versus`.

Both load one random checkpoint of the benchmark model (two transformers of 97M parameters, a text model of
36 layers, a scaled-down VAE of the published shape), with heads of 256 as published and with heads of 64, and
run V4_TURBO_12. Each variant has its own process. The variants take turns after each step, so that other load
affects all equally. diffusers runs with its best options: prompts not padded, no progress bar, and the faster
of plain and compiled blocks; the variant "diffusers, defaults" pads to 2048 tokens and shows its bar.

Of the 12 steps, `--steps` are run; the others count as the median of those after the first, over all rounds.
Image to image starts at a later step: at strength 0.7, 9 steps are left. diffusers has no such pipeline for
this model; its own is given the encoded source with noise, and leaves out the steps before.
The images are compared after the steps that ran, to check that both sides do the same work. "products" is the
time of the matrix products and the attention of 12 steps alone, and "limit" the ratio at which an engine that
does nothing else would arrive.

With `--json FILE`, rows that the file holds already are not measured again.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from itertools import product
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.bench_model import DITS, write_bench_model
from benchmarks.products import Products, flops, gflops_per_second
from benchmarks.report import Report, Row, add_arguments, progress, several, verdict
from benchmarks.variants import VARIANTS, Job, Ours, Run, image_seconds
from benchmarks.versus_plot import plot
from engine.environment import set_up_environment

# Minimum and median ratio to diffusers at its best, by dtype.
BARS = {"float32": (1.15, 1.15), "bfloat16": (1.25, 1.5)}
OURS = ("ours", "ours, compiled")
BEST = ("diffusers", "diffusers, compiled")
PRODUCTS = "products"
DEFAULTS = (*OURS, *BEST)
KEY = {"model": "<9", "dtype": "<8", "side": "4d", "tokens": "6d"}
EDIT = KEY | {"strength": "8.2f"}
RATIOS = {
    "GFLOP/s": "7.0f",
    "ratio": "5.2f",
    "bar": "4.2f",
    "verdict": "<6",
    "limit": "5.2f",
    "difference": "10.4f",
}
SUMMARY = {
    "dtype": "<8",
    "rows": "4d",
    "minimum": "7.2f",
    "bar": "4.2f",
    "median": "6.2f",
    "median bar": "10.2f",
    "verdict": "<6",
    "time grows": "10.1f",
    "FLOPs grow": "10.1f",
}


def serve(connection: Connection, name: str, path: Path, dtype: str) -> None:
    """Send the kernels that were picked, then receive jobs and send runs.

    Starts with two small images, which trigger compilation.
    """
    variant = (VARIANTS | {PRODUCTS: Products.load})[name](path, dtype)
    for warm_up in (Job(64, 30, 2), Job(96, 60, 2)):
        variant.run(warm_up)
    connection.send(variant.picked if isinstance(variant, Ours) else {})

    def pause() -> None:
        connection.send(None)
        connection.recv()

    while (job := connection.recv()) is not None:
        connection.send(variant.run(job, pause))


class Turns:
    """The processes of all variants for one checkpoint and dtype; `picked`: the engine's kernels."""

    def __init__(self, path: Path, dtype: str, names: list[str]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes: dict[str, Connection] = {}
        self.picked: Row = {}
        self._processes = []
        for name in progress(names, f"{dtype}: loading"):
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(there, name, path, dtype), daemon=True)
            with patch.dict(os.environ):
                if not name.startswith("diffusers"):
                    set_up_environment()
                process.start()
            there.close()  # so that the death of the process ends `recv`
            self.picked |= here.recv()
            self.pipes[name] = here
            self._processes.append(process)

    def run(self, job: Job, row_seconds: float) -> dict[str, list[Run]]:
        """Make one image per variant and round, until `row_seconds` have passed."""
        runs: dict[str, list[Run]] = {name: [] for name in self.pipes}
        started = time.monotonic()
        while not any(runs.values()) or time.monotonic() < started + row_seconds:
            for name, run in self._round(job).items():
                runs[name].append(run)
        return runs

    def _round(self, job: Job) -> dict[str, Run]:
        """One image per variant; the variants take turns after each step."""
        replies = {}
        for go in (job, *range(job.steps)):
            for name, pipe in self.pipes.items():
                pipe.send(go)
                replies[name] = pipe.recv()
        return replies

    def close(self) -> None:
        for pipe in self.pipes.values():
            pipe.send(None)
        for process in self._processes:
            process.join()


def difference(a: Run, b: Run) -> float:
    """Mean absolute difference of the pixel values, 0 to 255."""
    return float(np.abs(a.pixels.astype(int) - b.pixels).mean())


def row(dit: dict[str, Any], dtype: str, job: Job, runs: dict[str, list[Run]]) -> Row:
    """The measured cells of a row."""
    seconds = {name: image_seconds(taken, job.first_step) for name, taken in runs.items()}
    ours, theirs = (min((seconds[n] for n in names if n in seconds), default=None) for names in (OURS, BEST))
    cells: Row = {"steps": job.steps, **seconds}
    if PRODUCTS in seconds:
        cells["GFLOP/s"] = gflops_per_second(dit, job, seconds[PRODUCTS])
    if ours and theirs:
        bar = BARS[dtype][0]
        limit = theirs / seconds[PRODUCTS] if PRODUCTS in seconds else None
        cells |= {"ratio": theirs / ours, "bar": bar, "verdict": verdict(theirs / ours, bar), "limit": limit}
        sides = [next(runs[name][-1] for name in names if name in runs) for names in (OURS, BEST)]
        cells["difference"] = difference(*sides)
    return cells


def missing(report: Report, options: argparse.Namespace, model: str, dtype: str) -> list[Job]:
    """The jobs that the report has no row of. Image to image is measured with the first prompt."""
    asked = [*product(options.sizes, options.tokens, [1.0])]
    asked += product(options.sizes, options.tokens[:1], options.strengths)
    jobs = [Job(side, tokens, options.steps, strength) for side, tokens, strength in asked]
    return [job for job in jobs if not _rows(report, job, model=model, dtype=dtype, steps=job.steps)]


def _rows(report: Report, job: Job, **key: Any) -> list[Row]:
    table, own = place(job)
    return report.rows(table, **key, **own)


def place(job: Job) -> tuple[str, Row]:
    """The table of a job, and the cells that identify its row there."""
    key = {"side": job.side, "tokens": job.tokens}
    return ("images", key) if job.strength == 1 else ("edits", key | {"strength": job.strength})


def measure(report: Report, jobs: list[Job], options: argparse.Namespace, model: str, dtype: str) -> None:
    """Add the rows of these jobs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / model
        write_bench_model(path, DITS[model])
        turns = Turns(path, dtype, [*options.variants, PRODUCTS])
    report.content.setdefault("kernels", {})[f"{model} {dtype}"] = turns.picked
    for job in progress(jobs, f"{model}, {dtype}"):
        cells = row(DITS[model], dtype, job, turns.run(job, options.row_seconds))
        table, key = place(job)
        report.add(table, model=model, dtype=dtype, **key, **cells)
    turns.close()


def summarize(report: Report, dtype: str) -> None:
    """Add the smallest and the median ratio, and how time and work grow from the smallest to the largest."""
    rows = [row for row in report.rows("images", dtype=dtype) if "ratio" in row]
    if not rows:
        return
    ratios = [row["ratio"] for row in rows]
    low, middle = min(ratios), median(ratios)
    low_bar, middle_bar = BARS[dtype]
    missed = low < low_bar or middle < middle_bar
    cells = {"minimum": low, "bar": low_bar, "median": middle, "median bar": middle_bar}
    verdict = {"verdict": "MISSED" if missed else "ok"}
    report.add("summary", dtype=dtype, rows=len(rows), **cells, **verdict, **growth(rows))


def growth(rows: list[Row]) -> Row:
    """How many times longer the largest job takes than the smallest, and how many times more FLOPs it has."""

    def work(row: Row) -> int:
        return flops(DITS[row["model"]], Job(row["side"], row["tokens"], row["steps"]))

    small, large = min(rows, key=work), max(rows, key=work)
    taken = [min(row[name] for name in OURS if name in row) for row in (small, large)]
    return {"time grows": taken[1] / taken[0], "FLOPs grow": work(large) / work(small)}


def run(options: argparse.Namespace) -> Report:
    """Measure all rows that are missing, and add the summary."""
    seconds = dict.fromkeys((*options.variants, PRODUCTS), "8.2f")
    images, edits = (key | seconds | RATIOS for key in (KEY, EDIT))
    report = Report("versus", options, resume=True, images=images, edits=edits, summary=SUMMARY)
    for model, dtype in product(options.models, options.dtypes):
        if jobs := missing(report, options, model, dtype):
            measure(report, jobs, options, model, dtype)
    report.content["tables"]["summary"] = []
    for dtype in options.dtypes:
        summarize(report, dtype)
    return report


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.versus",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--models", type=several(str), default=list(DITS), help=f"of {', '.join(DITS)}")
    made.add_argument("--dtypes", type=several(str), default=list(BARS), help="of float32, bfloat16")
    made.add_argument("--sizes", type=several(int), default=[256, 512], help="pixels a side")
    made.add_argument("--tokens", type=several(int), default=[30, 300, 1500], help="prompt tokens")
    made.add_argument(
        "--variants", type=lambda text: text.split(";"), default=list(DEFAULTS), help="; between them"
    )
    made.add_argument("--strengths", type=several(float), default=[0.7], help="of image to image, below 1")
    made.add_argument("--steps", type=int, default=3, help="steps to run of the 12, at least 2")
    made.add_argument(
        "--row-seconds", type=float, default=20, help="repeat short rows for this long (default 20)"
    )
    made.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the ratios, see benchmarks.tables")
    add_arguments(made)
    return made


def main() -> None:
    options = parser().parse_args()
    report = run(options)
    if options.plot:
        plot(report.content, options.plot)


if __name__ == "__main__":
    main()
