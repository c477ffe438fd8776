"""Measure steps with LoRA adapters: `python -m benchmarks.adapters`.

Runs a batch of the benchmark model in which each image uses one of several adapters, in turn. The adapters
change every matrix of every block. "ratio" is the step relative to one without adapters, which takes as long
as one with a single adapter merged into the weights; "in turn" are steps with merged weights, one for the
images of each adapter; "merge" is adding one adapter to the weights. "products" are the ways to compute the
products of several adapters, of which a worker measures the faster one. Seconds are minima over the rounds.

The second table measures steps while adapters are loaded from files in the same process.
"""

import argparse
import hashlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import save_file

from benchmarks.bench_model import write_bench_model
from benchmarks.report import Report, add_arguments, progress, several, verdict
from benchmarks.variants import Ours, prompt
from engine.adapters.adapter import Adapter, blank_adapter
from engine.adapters.store import AdapterStore
from engine.config.options import EngineOptions
from engine.config.part_configs import DiTConfig
from engine.environment import set_up_environment
from engine.kernels.low_rank import CANDIDATES, MAX_STACKED
from engine.models.resumable import drain
from engine.request import AdapterUse
from engine.runner.model_runner import ModelRunner
from engine.runner.request_state import RequestState, SampleState

PRODUCTS = {candidate.name: candidate.run for candidate in CANDIDATES}
BAR = 1.15  # of the step with rank 16, relative to the plain step
LOADING_BAR = 2.0  # of the longest step while adapters are loaded, relative to the usual step
PROMPT_TOKENS = 30
STEPS = {"rank": "4d", "adapters": "8d", "products": "<8", "seconds": "8.3f", "plain": "8.3f"}
STEPS |= {"ratio": "6.3f", "in turn": "8.3f", "merge": "7.3f", "bar": "5.2f", "verdict": "<7"}
LOADING = {"rank": "4d", "loaded": "7d", "MB": "6.0f", "steps": "6d", "usual": "7.3f", "longest": "7.3f"}
LOADING |= {"ratio": "6.2f", "bar": "5.2f", "verdict": "<7"}


class Bench:
    """The benchmark model and random adapters."""

    def __init__(self, path: Path, options: argparse.Namespace) -> None:
        self.engine = Ours.load(path, options.dtype)
        self.pipeline = self.engine.runner.pipeline
        self.adapters: dict[str, Adapter] = {}
        self.runner = ModelRunner(self.pipeline, "cpu", adapters=self.adapters)
        self.sample = self.engine.start(options.side, prompt(self.engine.tokenizer, PROMPT_TOKENS))

    def use(self, rank: int, index: int) -> AdapterUse:
        """One of the adapters of a rank, with memory of its own."""
        name = f"{rank}-{index}"
        if name not in self.adapters:
            blank = blank_adapter(self.pipeline.conditional, rank)
            self.adapters[name] = blank.map(lambda _, tensor: torch.randn_like(tensor) / 100)
        return AdapterUse(name, "", name, 1.0)

    def samples(self, uses: list[AdapterUse | None]) -> list[SampleState]:
        return [self._start(use) for use in uses]

    def _start(self, use: AdapterUse | None) -> SampleState:
        request = replace(self.sample.request, adapters=(use,) if use else ())
        state = RequestState(request)
        (state.conditioning,) = drain(self.runner.encode([request]))
        return self.runner.new_sample(state, 0)

    def step(self, samples: list[SampleState], products: str = "spans") -> None:
        for sample in samples:
            sample.step_index = 0
        for dit in (self.pipeline.conditional, self.pipeline.unconditional):
            dit.low_rank.kernel = PRODUCTS[products]
        self.runner.denoise_step(samples)

    def merge(self, adapter: Adapter) -> None:
        """The arithmetic of merging an adapter into plain weights."""
        for block in adapter.conditional:
            for factors in block.values():
                for up, down in zip(factors.up, factors.down.chunk(len(factors.up)), strict=True):
                    torch.zeros(len(up), down.shape[1], dtype=up.dtype).addmm_(up, down)


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def measure(bench: Bench, report: Report, options: argparse.Namespace, rank: int) -> None:
    """The rows of one rank. Each round runs every variant once."""
    batch = options.batch
    runs: dict[tuple[int, str], Callable[[], object]] = {}
    for number in options.adapters:
        uses = [bench.use(rank, index % number) if number else None for index in range(batch)]
        samples = bench.samples(uses)
        for products in ("spans", "stacked") if number > 1 and number * rank <= MAX_STACKED else ("spans",):
            runs[number, products] = partial(bench.step, samples, products)
    plain = {size: bench.samples([None] * size) for size in {*_shares(batch, options.adapters), batch}}
    alone = {size: partial(bench.step, samples) for size, samples in plain.items()}
    together: dict[tuple[int, str], list[float]] = {variant: [] for variant in runs}
    apart: dict[int, list[float]] = {size: [] for size in alone}
    for _ in progress(range(options.rounds + 1), f"rank {rank}"):
        for variant, run in runs.items():
            together[variant].append(seconds(run))
        for size, run in alone.items():
            apart[size].append(seconds(run))
    merge = min(seconds(lambda: bench.merge(bench.adapters[f"{rank}-0"])) for _ in range(3))
    usual = min(apart[batch][1:])
    for (number, products), times in together.items():
        ratio, bar = min(times[1:]) / usual, BAR if rank <= 16 else None
        turns = sum(min(apart[size][1:]) for size in _shares(batch, [number]))
        report.add(
            "steps",
            rank=rank,
            adapters=number,
            products=products if number > 1 else None,
            seconds=min(times[1:]),
            plain=usual,
            ratio=ratio,
            merge=merge,
            bar=bar,
            verdict=verdict(-ratio, -bar) if bar else None,
            **{"in turn": turns},
        )


def _shares(batch: int, numbers: list[int]) -> list[int]:
    """How many images of a batch use each of so many adapters."""
    return [len(range(index, batch, max(1, number))) for number in numbers for index in range(max(1, number))]


def write_adapter(file: Path, config: DiTConfig, rank: int, seed: int) -> AdapterUse:
    """Write a random adapter in the format of PEFT, in bfloat16."""
    width, hidden = config.hidden_size, config.intermediate_size
    shapes = {f"attention.{name}": (width, width) for name in ("to_q", "to_k", "to_v", "to_out.0")}
    shapes |= {"feed_forward.w1": (hidden, width), "feed_forward.w3": (hidden, width)}
    shapes |= {"feed_forward.w2": (width, hidden)}
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(config.num_layers):
        for name, (rows, columns) in shapes.items():
            for leaf, shape in (("lora_A", (rank, columns)), ("lora_B", (rows, rank))):
                random = torch.randn(shape, generator=generator) / 100
                tensors[f"transformer.layers.{layer}.{name}.{leaf}.weight"] = random.bfloat16()
    save_file(tensors, file)
    return AdapterUse(file.stem, str(file), hashlib.sha256(file.read_bytes()).hexdigest(), 1.0)


def load_beside(bench: Bench, report: Report, options: argparse.Namespace, folder: Path) -> None:
    """Load adapters, one after the other, beside steps of one image."""
    rank, config = max(options.ranks), bench.pipeline.conditional.config
    uses = [write_adapter(folder / f"{i}.safetensors", config, rank, i) for i in range(options.loaded)]
    store = AdapterStore.of(bench.pipeline, EngineOptions(adapter_memory_gb=64))
    samples = bench.samples([None])
    before = [seconds(lambda: bench.step(samples)) for _ in range(options.rounds * 4)]
    during: list[float] = []
    for number in count(1):
        wanted = uses[:number]
        started = time.perf_counter()
        store.update(wanted, ())
        bench.step(samples)
        during.append(time.perf_counter() - started)
        if len(wanted) == len(uses) and all(store.is_resident(use.digest) for use in uses):
            break
    ratio = max(during) / median(before)
    report.add(
        "loading",
        rank=rank,
        loaded=len(uses),
        MB=sum(Path(use.path).stat().st_size for use in uses) / 1e6,
        steps=len(during),
        usual=median(before),
        longest=max(during),
        ratio=ratio,
        bar=LOADING_BAR,
        verdict=verdict(-ratio, -LOADING_BAR),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.adapters",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--side", type=int, default=256, help="pixels a side")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=int, default=8, help="images in a step")
    parser.add_argument("--adapters", type=several(int), default=[0, 1, 4, 8], help="numbers of adapters")
    parser.add_argument("--ranks", type=several(int), default=[16, 128])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loaded", type=int, default=8, help="adapters to load beside steps")
    add_arguments(parser)
    options = parser.parse_args()
    set_up_environment()
    report = Report("adapters", options, steps=STEPS, loading=LOADING)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench-model"
        write_bench_model(path)
        bench = Bench(path, options)
        for rank in options.ranks:
            measure(bench, report, options, rank)
        load_beside(bench, report, options, Path(folder))


if __name__ == "__main__":
    main()
