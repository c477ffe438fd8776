"""Compare step-level batching with request-level batching: `python -m benchmarks.batching`.

On a CPU with one torch thread, times are processor seconds of this process, so that other load does not
distort them. With more `--threads` or on a GPU they are wall-clock seconds. Variants alternate. Figures are
medians over the rounds, except for the last rows, which are means.
"""

import argparse
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.batching_plot import plot
from benchmarks.parts import apart
from benchmarks.report import Report, add_arguments, progress, verdict
from engine.channel import Outbox
from engine.checkpoint.loader import load_pipeline
from engine.client.tokenizer import Tokenizer
from engine.config.model_config import ModelConfig
from engine.config.options import EngineOptions
from engine.environment import set_up_environment
from engine.messages import FromWorker, RequestDone, StepDone
from engine.models.resumable import drain
from engine.request import EngineRequest
from engine.runner.model_runner import ModelRunner
from engine.runner.request_state import RequestState, SampleState
from engine.scheduling.batch_limits import BatchLimits
from engine.scheduling.scheduler import Scheduler
from engine.tuning.machine import cache_folder
from engine.tuning.store import ChoiceStore
from engine.tuning.tuner import tune
from engine.worker.core import EngineCore
from engine.worker.warmup import measure

# Steps that each long request has taken when the short one arrives.
HEAD_START = 4
NUM_MIXED = 32
PROMPTS = (
    "a red circle on a white background",
    "a blue square, and beside it a very small green triangle on a black background",
    "rings",
    "two yellow triangles over a broad blue stripe on a grey background",
)

Emit = Callable[[FromWorker], None]


@dataclass(frozen=True)
class Row:
    """Medians of two variants. `bar`: the least that the second takes, in multiples of the first."""

    what: str
    seconds: float
    against: str
    other_seconds: float
    bar: float

    @property
    def cells(self) -> dict[str, Any]:
        ratio = self.other_seconds / self.seconds
        return {**vars(self), "ratio": ratio, "verdict": verdict(ratio, self.bar)}


RATIOS = {"what": "<36", "seconds": "7.3f", "against": "<18", "other_seconds": "13.3f"}
RATIOS |= {"ratio": "5.2f", "bar": "4.2f", "verdict": "<6"}


class Bench:
    """One loaded model. Methods that return a float run one variant once and return its seconds."""

    def __init__(self, path: Path, device: str, threads: int) -> None:
        self.config = ModelConfig.load(path)
        self.clock = time.process_time if device == "cpu" and threads == 1 else time.perf_counter
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        pipeline = load_pipeline(self.config.folders, device, dtype)
        tune(pipeline, self.config, (), ChoiceStore(cache_folder()))
        self.runner = ModelRunner(pipeline, device)
        self.cost = measure(self.runner, self.config, EngineOptions())
        self._tokenizer = Tokenizer(path / "tokenizer", self.config.limits.max_prompt_tokens)

    def request(
        self, index: int, preset: str, size: tuple[int, int] | None = None, previews: int = 0
    ) -> EngineRequest:
        chosen = self.config.presets[preset]
        width, height = size or (self.config.default_width, self.config.default_height)
        return EngineRequest(
            str(index),
            self._tokenizer.encode(PROMPTS[index % len(PROMPTS)]),
            width,
            height,
            seeds=(index,),
            sampling=chosen,
            num_previews=previews,
            submitted=self.clock(),
        )

    def long(self, previews: int = 0) -> list[EngineRequest]:
        return [self.request(index, "V4_QUALITY_48", previews=previews) for index in range(4)]

    def short(self) -> EngineRequest:
        return self.request(4, "V4_TURBO_12")

    def mixed(self) -> list[EngineRequest]:
        """Half of the requests at the default size, the others at two smaller sizes, with all presets."""
        presets = list(self.config.presets)
        side = self.config.default_width
        sizes = [(side, side), (side // 2, side // 2), (side, side), (side, side // 2)]
        return [self.request(i, presets[i % len(presets)], sizes[i // 2 % 4]) for i in range(NUM_MIXED)]

    def core(self, emit: Emit) -> EngineCore:
        scheduler = Scheduler(self.cost, BatchLimits(self.cost), EngineOptions().max_running)
        return EngineCore(self.runner, scheduler, emit, clock=self.clock)

    def start(self, requests: Sequence[EngineRequest], emit: Emit) -> EngineCore:
        core = self.core(emit)
        for each in requests:
            core.add(each)
        return core

    def run(self, requests: Sequence[EngineRequest]) -> float:
        """Run all requests concurrently through the engine."""
        self.runner.clear_cache()
        started = self.clock()
        core = self.start(requests, lambda message: None)
        while core.has_work:
            core.step()
        return self.clock() - started

    def one_at_a_time(self, requests: Sequence[EngineRequest]) -> float:
        self.runner.clear_cache()
        started = self.clock()
        for each in requests:
            self._together([each], steps=each.sampling.num_inference_steps)
        return self.clock() - started

    def short_by_step(self) -> float:
        """Run a short request that arrives after HEAD_START steps of the long ones; time until its image."""
        self.runner.clear_cache()
        sent: list[FromWorker] = []
        long, short = self.long(), self.short()
        core = self.start(long, sent.append)
        while not have_head_start(sent, long):
            core.step()
        started = self.clock()
        core.add(short)
        while not any(isinstance(m, RequestDone) and m.request_id == short.request_id for m in sent):
            core.step()
        return self.clock() - started

    def short_by_request(self) -> float:
        """Same with request-level batching: the short request waits until the running batch is done."""
        self.runner.clear_cache()
        samples = self._together(self.long(), steps=HEAD_START)
        started = self.clock()
        while not samples[0].is_finished:
            self.runner.denoise_step(samples)
        drain(self.runner.decode(samples))
        short = self.short()
        self._together([short], steps=short.sampling.num_inference_steps)
        return self.clock() - started

    def _together(self, requests: list[EngineRequest], steps: int) -> list[SampleState]:
        """Run requests of equal step counts as one batch, and decode them if `steps` completes them."""
        samples = [self._sample(each) for each in requests]
        for _ in range(steps):
            self.runner.denoise_step(samples)
        if samples[0].is_finished:
            drain(self.runner.decode(samples))
        return samples

    def _sample(self, request: EngineRequest) -> SampleState:
        state = RequestState(request)
        (state.conditioning,) = drain(self.runner.encode([request]))
        return self.runner.new_sample(state, 0)


def have_head_start(sent: list[FromWorker], requests: list[EngineRequest]) -> bool:
    steps = {m.request_id for m in sent if isinstance(m, StepDone) and m.step >= HEAD_START}
    return len(steps) == len(requests)


def alternate(rounds: int, *variants: Callable[[], float]) -> list[float]:
    """Run the variants in turn and return the median of each."""
    taken = [[variant() for variant in variants] for _ in range(rounds)]
    return [median(column) for column in zip(*taken, strict=True)]


def latency(bench: Bench, rounds: int) -> list[Row]:
    step, request, alone = alternate(
        rounds, bench.short_by_step, bench.short_by_request, lambda: bench.one_at_a_time([bench.short()])
    )
    what = "TURBO_12 beside 4 QUALITY_48"
    return [
        Row(what, step, "by whole requests", request, 2.85),
        Row(what, step, "alone", alone, 0.2),
    ]


def throughput(bench: Bench, rounds: int) -> list[Row]:
    together, apart = alternate(
        rounds, lambda: bench.run(bench.mixed()), lambda: bench.one_at_a_time(bench.mixed())
    )
    return [Row(f"{NUM_MIXED} mixed requests", together, "one at a time", apart, 1.33)]


def eight(bench: Bench, rounds: int) -> list[Row]:
    """Eight requests of one size at once against one at a time."""
    rows = []
    for side in (64, 96, 128):
        requests = [bench.request(index, "V4_TURBO_12", (side, side)) for index in range(8)]
        together, apart = alternate(
            rounds, partial(bench.run, requests), partial(bench.one_at_a_time, requests)
        )
        rows.append(Row(f"8 at once, {side} px", together, "one at a time", apart, 2.0))
    return rows


def news(bench: Bench, rounds: int) -> list[Row]:
    """Sending progress and previews to another process, against sending nothing."""
    ours, theirs = multiprocessing.Pipe()
    reader = multiprocessing.get_context("spawn").Process(target=read_all, args=(theirs,), daemon=True)
    reader.start()
    theirs.close()
    silent, progress, previews = interleave(
        bench,
        rounds,
        lambda: bench.start(bench.long(), lambda message: None),
        lambda: bench.start(bench.long(), Outbox(ours).emit),
        lambda: bench.start(bench.long(previews=3), Outbox(ours).emit),
    )
    ours.close()
    reader.join()
    return [
        Row("4 QUALITY_48 with progress", progress, "nothing sent", silent, 0.98),
        Row("and with 3 previews each", previews, "nothing sent", silent, 0.98),
    ]


def interleave(bench: Bench, rounds: int, *starts: Callable[[], EngineCore]) -> list[float]:
    """Mean seconds per round. Variants take turns after each unit, so that other load affects all equally."""
    bench.run(bench.long())  # so that the prompts are cached for all variants
    seconds = [0.0] * len(starts)
    for _ in range(rounds):
        cores = [start() for start in starts]
        while any(core.has_work for core in cores):
            for index, core in enumerate(cores):
                started = bench.clock()
                core.step()
                seconds[index] += bench.clock() - started
    return [total / rounds for total in seconds]


def read_all(connection: Connection) -> None:
    try:
        while True:
            connection.recv()
    except (EOFError, OSError):
        return


def print_rows(options: argparse.Namespace) -> int:
    """Print the rows and return 1 if a bar is missed."""
    torch.set_num_threads(options.threads)
    report = Report("batching", options, ratios=RATIOS)
    bench = Bench(options.model, options.device, options.threads)
    for part in progress((latency, throughput, eight, news), "batching"):
        for row in part(bench, options.rounds):
            report.add("ratios", **row.cells)
    if options.plot:
        plot(report.content, options.plot)
    return int(any(row["verdict"] == "MISSED" for row in report.rows("ratios")))


def main() -> int:
    """Measure in a new process, whose environment is a worker's."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batching", description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/demo"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="torch threads on a CPU")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the latency rows")
    add_arguments(parser)
    options = parser.parse_args()
    set_up_environment()
    return int(apart(print_rows, options))


if __name__ == "__main__":
    sys.exit(main())
