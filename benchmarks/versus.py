"""`python -m benchmarks.versus`: this engine against diffusers' own pipeline, side by side, in one run.

One random checkpoint of bench size (transformers of 97M parameters each, a text model of 36 layers, a VAE of
the published shape, scaled down), V4_TURBO_12. Every variant has a process of its own; they take turns, and
figures are medians over the rounds. diffusers runs with its defaults (prompts padded to 2048 tokens, progress
bar) and at its best: the prompt's own length, no progress bar, and the faster of plain and compiled blocks.

Of the 12 steps `--steps` are run and the rest counted at the median of those after the first: all steps cost
the same. Images are compared after the steps that ran, so that no side does less work.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.bench_model import DIT, write_bench_model
from engine.checkpoint import load_pipeline
from engine.config import PUBLISHED_PRESETS
from engine.device import choose_dtype, set_up_cpu
from engine.messages import EngineRequest, SamplingParams
from engine.model_runner import ModelRunner
from engine.request import RequestState
from engine.tokenizer import Tokenizer
from engine.work import drain
from tests.server.process import ServerProcess, until

TURBO = PUBLISHED_PRESETS["V4_TURBO_12"]
MAX_TOKENS = 2048
SEED = 5
CPU = torch.device("cpu")
# least ratio of diffusers at its best to this engine, by dtype and side in pixels; elsewhere 1
BARS = {("float32", 256): 1.15, ("float32", 512): 1.15, ("bfloat16", 256): 1.3, ("bfloat16", 512): 1.4}
DEFAULTS_BAR = 3.0


@dataclass(frozen=True)
class Job:
    """One image: side in pixels, prompt in tokens, how many of the 12 steps are run (2 or more)."""

    side: int
    tokens: int
    steps: int


@dataclass(frozen=True)
class Run:
    """Seconds of the whole image at 12 steps; the pixels after the steps that ran."""

    seconds: float
    pixels: NDArray[np.uint8]


class Variant(Protocol):
    """One way to make images."""

    def run(self, job: Job) -> Run: ...


class Ours:
    """The engine as its worker loads it."""

    def __init__(self, path: Path, dtype: str, compiled: bool = False) -> None:
        set_up_cpu(workers=1)
        pipeline = load_pipeline(path, CPU, choose_dtype(CPU, dtype))
        self.runner = ModelRunner(pipeline, CPU, compiled=compiled)
        self.tokenizer = Tokenizer(path / "tokenizer", MAX_TOKENS)

    def run(self, job: Job) -> Run:
        self.runner.clear_cache()
        text = prompt(self.tokenizer, job.tokens)
        started = time.perf_counter()
        sampling = SamplingParams(TURBO.guidance_schedule, TURBO.mu, TURBO.std)
        ids = self.tokenizer.encode(text)
        state = RequestState(EngineRequest("bench", ids, job.side, job.side, (SEED,), sampling))
        state.conditioning = drain(self.runner.encode_prompt(state.request))
        sample = self.runner.new_sample(state, 0)
        ticks: list[float] = []
        for _ in range(job.steps):
            self.runner.denoise_step([sample])
            ticks.append(time.perf_counter())
        rgb = drain(self.runner.decode(sample))
        seconds = whole(started, ticks, time.perf_counter())
        return Run(seconds, np.frombuffer(rgb, np.uint8).reshape(job.side, job.side, 3))


class Theirs:
    """diffusers' pipeline."""

    def __init__(self, path: Path, dtype: str, compiled: bool = False, defaults: bool = False) -> None:
        from diffusers import Ideogram4Pipeline

        self.pipeline: Any = Ideogram4Pipeline.from_pretrained(path, dtype=getattr(torch, dtype))
        self.pipeline.set_progress_bar_config(disable=not defaults)
        if compiled:
            self.pipeline.transformer.compile_repeated_blocks()
            self.pipeline.unconditional_transformer.compile_repeated_blocks()
        self.tokenizer = Tokenizer(path / "tokenizer", MAX_TOKENS)
        self.defaults = defaults

    def run(self, job: Job) -> Run:
        ticks: list[float] = []

        def stepped(pipeline: Any, step: int, _time: Any, _kwargs: Any) -> dict[str, Any]:
            ticks.append(time.perf_counter())
            pipeline._interrupt = step + 1 >= job.steps  # the rest is passed over
            return {}

        text = prompt(self.tokenizer, job.tokens)
        started = time.perf_counter()
        image = self.pipeline(
            text,
            height=job.side,
            width=job.side,
            num_inference_steps=TURBO.num_inference_steps,
            guidance_schedule=list(TURBO.guidance_schedule),
            mu=TURBO.mu,
            std=TURBO.std,
            max_sequence_length=MAX_TOKENS if self.defaults else job.tokens,
            generator=torch.Generator("cpu").manual_seed(SEED),
            callback_on_step_end=stepped,
            output_type="np",
        ).images[0]
        seconds = whole(started, ticks, time.perf_counter())
        return Run(seconds, np.asarray((image * 255).round(), np.uint8))


VARIANTS: dict[str, Callable[[Path, str], Variant]] = {
    "ours": Ours,
    "ours, compiled": lambda path, dtype: Ours(path, dtype, compiled=True),
    "diffusers": Theirs,
    "diffusers, compiled": lambda path, dtype: Theirs(path, dtype, compiled=True),
    "diffusers, defaults": lambda path, dtype: Theirs(path, dtype, defaults=True),
}


def whole(started: float, ticks: list[float], ended: float) -> float:
    """Seconds at 12 steps; `ticks` are the times after each of the two or more that ran."""
    missing = TURBO.num_inference_steps - len(ticks)
    return ended - started + missing * float(median(np.diff(ticks)))


def prompt(tokenizer: Tokenizer, tokens: int) -> str:
    """A text that is `tokens` long inside the chat template."""
    text = " a" * (tokens - len(tokenizer.encode("")))
    assert len(tokenizer.encode(text)) == tokens, "the filler is not one token"
    return text


def serve(connection: Connection, name: str, path: Path, dtype: str) -> None:
    """A variant's process: a job in, a run out."""
    variant = VARIANTS[name](path, dtype)
    connection.send(None)
    while (job := connection.recv()) is not None:
        connection.send(variant.run(job))


class Turns:
    """The variants' processes at one dtype."""

    def __init__(self, path: Path, dtype: str, names: list[str]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes: dict[str, Connection] = {}
        for name in names:
            here, there = context.Pipe()
            context.Process(target=serve, args=(there, name, path, dtype), daemon=True).start()
            here.recv()
            self.pipes[name] = here

    def run(self, job: Job, rounds: int) -> dict[str, list[Run]]:
        """In turns; the first of several rounds warms up and does not count."""
        runs: dict[str, list[Run]] = {name: [] for name in self.pipes}
        for _ in range(rounds):
            for name, pipe in self.pipes.items():
                pipe.send(job)
                runs[name].append(pipe.recv())
        return {name: all_[1:] or all_ for name, all_ in runs.items()}

    def close(self) -> None:
        for pipe in self.pipes.values():
            pipe.send(None)


def best(runs: dict[str, list[Run]], *names: str) -> float:
    """The least of these variants' medians, in seconds."""
    return min(median(run.seconds for run in runs[name]) for name in names if name in runs)


def difference(a: Run, b: Run) -> float:
    """Mean over the pixels, of 255."""
    return float(np.abs(a.pixels.astype(int) - b.pixels).mean())


def mark(ratio: float, bar: float) -> str:
    return f"{ratio:5.2f}{' ' if ratio >= bar else '!'}"


def report(dtype: str, job: Job, runs: dict[str, list[Run]]) -> float:
    """One row; a bar that is missed has a mark. Our seconds."""
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
    """The table of single images."""
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
    """From the smallest to the largest job: does the time grow faster than the work?"""
    small, large = min(seconds, key=flops), max(seconds, key=flops)
    time_grew, work_grew = seconds[large] / seconds[small], flops(large) / flops(small)
    sizes = f"{small.side} px, {small.tokens} tokens, to {large.side} px, {large.tokens} tokens"
    print(f"from {sizes}: time x{time_grew:.1f}, FLOPs of the transformers x{work_grew:.1f}", flush=True)


def flops(job: Job) -> float:
    """Of both transformers in a step: matrix products and attention."""
    width = DIT["attention_head_dim"] * DIT["num_attention_heads"]
    image = (job.side // 16) ** 2
    total = 0.0
    for tokens in (image, image + job.tokens):
        products = 2 * tokens * (4 * width**2 + 3 * width * DIT["intermediate_size"])
        total += DIT["num_layers"] * (products + 4 * tokens**2 * width)
    return total


# side in pixels and prompt in tokens of the concurrent requests
MIXED = ((256, 30), (512, 30), (256, 300), (256, 60), (512, 120), (256, 30), (256, 100), (256, 200))


def concurrent(path: Path, dtype: str, steps: int, rounds: int) -> None:
    """All of MIXED at once through HTTP: this server against diffusers behind FastAPI with a lock."""
    flags = ("--model", str(path), "--dtype", dtype)
    patience = ("--max-backlog-seconds", "86400", "--max-request-seconds", "86400")
    servers = {
        "ours": ServerProcess(*flags, *patience, "--log-level", "error", module="server"),
        "diffusers": ServerProcess(*flags, module="benchmarks.diffusers_server"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in servers}
    until(lambda: servers["ours"].http.get("/readyz").status_code == 200)
    print_share(servers["ours"], steps)
    for turn in range(rounds):
        for name, server in servers.items():
            seconds[name].append(all_at_once(server, turn, steps))
    for server in servers.values():
        server.close()
    ours, theirs = (median(seconds[name]) for name in servers)
    print(
        f"{dtype}: {len(MIXED)} concurrent requests, {steps} steps each, seconds to the last answer: ", end=""
    )
    print(f"ours {ours:.1f}, diffusers behind FastAPI {theirs:.1f}: {mark(theirs / ours, 1.4)} (bar 1.40)")


def print_share(server: ServerProcess, steps: int) -> None:
    """How much of one 512 px request is spent outside the engine: HTTP, queue, pipe, PNG."""
    shares = []
    for seed in range(3):
        body = {"prompt": "a", "size": "512x512", "seed": seed, "num_inference_steps": steps}
        started = time.perf_counter()
        response = server.http.post("/v1/images", json=body | {"guidance_scale": 7.0}, timeout=3600)
        seconds = time.perf_counter() - started
        stages = dict(stage.split(";dur=") for stage in response.headers["Server-Timing"].split(", "))
        engine = sum(float(stages[name]) for name in ("encode", "denoise", "decode")) / 1000
        shares.append(1 - engine / seconds)
    print(
        f"outside the engine, one request of 512 px, {steps} steps: {median(shares):.2%} (bar 5%)", flush=True
    )


def all_at_once(server: ServerProcess, turn: int, steps: int) -> float:
    """Seconds until the last of the requests is answered; every round has prompts of its own."""

    def ask(index: int) -> None:
        side, tokens = MIXED[index]
        body = {"prompt": " a" * (tokens - 14) + f" {turn}{index}", "size": f"{side}x{side}", "seed": index}
        sampling = {"num_inference_steps": steps, "guidance_scale": 7.0, "mu": TURBO.mu, "std": TURBO.std}
        server.http.post("/v1/images", json=body | sampling, timeout=3600).raise_for_status()

    started = time.perf_counter()
    with ThreadPoolExecutor(len(MIXED)) as threads:
        list(threads.map(ask, range(len(MIXED))))
    return time.perf_counter() - started


def several(choices: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    return lambda text: [choices(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.versus", description=__doc__)
    parser.add_argument("--sizes", type=several(int), default=[256, 512, 1024], help="pixels a side")
    parser.add_argument("--tokens", type=several(int), default=[30, 300, 1500], help="of the prompt")
    parser.add_argument("--dtypes", type=several(str), default=["float32", "bfloat16"])
    parser.add_argument("--variants", type=lambda text: text.split(";"), default=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=12, help="of the 12 that are run, 2 or more")
    parser.add_argument("--rounds", type=int, default=3, help="the first of several does not count")
    parser.add_argument("--no-http", action="store_true", help="leave the concurrent requests out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench-model"
        write_bench_model(path)
        compare(path, options)
        if not options.no_http:
            for dtype in options.dtypes:
                concurrent(path, dtype, options.steps, options.rounds)


if __name__ == "__main__":
    main()
