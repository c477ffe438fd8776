"""Time every candidate of every kernel of a model: `python -m benchmarks.kernels`.

"Before" is the kernel that fixed rules chose in version 0.1.0, "after" the fastest. One table has a row per
operation and shape, over a small and the default size; the other has step times with the fixed rules and all
threads, and with the kernels and threads that a worker chooses.
"""

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.bench_model import DITS, write_bench_model
from benchmarks.parts import apart
from benchmarks.report import Report, Row, add_arguments, progress, several
from benchmarks.variants import CPU, Ours, prompt
from engine.checkpoint.loader import load_pipeline
from engine.config.model_config import ModelConfig
from engine.config.part_folders import PartFolders
from engine.environment import set_up_environment
from engine.kernels.candidates import Machine
from engine.runner.device import set_up_cpu
from engine.tuning.arithmetic import DTYPES
from engine.tuning.cases import Case, find_cases
from engine.tuning.pins import Pin
from engine.tuning.race import Run, fastest, winner
from engine.tuning.tuner import model_parts

DEMO = Path(__file__).parents[1] / "models" / "demo"
MODELS = {"demo": (64, 96, 128), **dict.fromkeys(DITS, (256, 512))}  # sides of the step times, in pixels
MIN_PREPACKED = 1 << 18
SECONDS, STEP_SECONDS = 0.3, 10.0
KERNELS = {
    "model": "<9",
    "dtype": "<8",
    "case": "<24",
    "before": "<9",
    "after": "<9",
    "gain": "5.2f",
    "all": "<60",
}
STEPS = {"model": "<9", "dtype": "<8", "side": "4d", "before": "8.4f", "after": "8.4f", "threads": "7d"}


def rule(case: Case, dtype: torch.dtype) -> str:
    """The kernel that the fixed rules chose on a CPU."""
    operation, *shape = case.key.split(".")
    is_bfloat16, has_avx512 = dtype == torch.bfloat16, bool(torch.cpu.get_capabilities().get("avx512_f"))
    if operation == "attention":
        wants_products = is_bfloat16 and int(shape[0]) >= 128 and shape[1] != "tiny"
        return "products" if wants_products else "float32" if is_bfloat16 else "native"
    if operation == "causal_attention":
        return "float32" if is_bfloat16 else "native"
    if operation in ("linear", "feed_forward"):
        weights = math.prod(map(int, shape[0].split("x")))
        if has_avx512 and weights >= MIN_PREPACKED:
            return "prepacked"
        return "pieces" if operation == "feed_forward" and int(shape[0].split("x")[1]) > 1024 else "plain"
    return "spans" if operation == "low_rank" else "torch"


def flops(case: Case) -> float:
    """Of the matrix products over all sizes; 0 for other operations and for causal attention."""
    products = {"attention": "products", "linear": "plain", "feed_forward": "plain"}
    if case.operation not in products:
        return 0.0
    with FlopCounterMode(display=False) as counter:
        for run in case.trials(case.candidate(products[case.operation])):
            run()
    return float(counter.get_total_flops())


@torch.inference_mode()
def row(case: Case, dtype: torch.dtype) -> Row:
    """`all`: GFLOP/s of each candidate, or milliseconds where the operation is no product."""
    runs = {candidate.name: case.trials(candidate) for candidate in case.candidates}
    columns = [fastest(each, SECONDS) for each in zip(*runs.values(), strict=True)]
    seconds = dict(zip(runs, map(sum, zip(*columns, strict=True)), strict=True))
    done, before = flops(case), rule(case, dtype)
    after = winner({before: seconds[before], **seconds})
    rates = {name: done / value / 1e9 if done else 1000 * value for name, value in seconds.items()}
    listed = ", ".join(f"{name} {rate:.3g}" for name, rate in rates.items())
    return {
        "case": case.key,
        "before": before,
        "after": after,
        "gain": seconds[before] / seconds[after],
        "all": f"{listed} {'GFLOP/s' if done else 'ms'}",
        "seconds": seconds,
    }


def kernels(path: Path, dtype: str) -> list[Row]:
    set_up_cpu(workers=1)
    pipeline = load_pipeline(PartFolders.of(path), CPU, DTYPES[dtype])
    cases = find_cases(model_parts(pipeline, ModelConfig.load(path)), Machine("cpu", DTYPES[dtype]))
    return [row(case, DTYPES[dtype]) for case in cases]


def stepping(ours: Ours, side: int, threads: int) -> Run:
    """Runs a guided step of one sample with a prompt of 30 tokens."""
    sample = ours.start(side, prompt(ours.tokenizer, 30))

    def step() -> None:
        torch.set_num_threads(threads)
        sample.step_index = 0
        ours.step([sample])

    return step


def steps(path: Path, dtype: str, sides: tuple[int, ...], pins: tuple[Pin, ...]) -> list[Row]:
    """Minimum seconds; the two alternate."""
    set_up_cpu(workers=1)
    every = torch.get_num_threads()
    after = Ours.load(path, dtype, set_up=False)
    taken = torch.get_num_threads()
    before = Ours.load(path, dtype, set_up=False, kernels=pins)
    rows = []
    for side in sides:
        runs = stepping(before, side, every), stepping(after, side, taken)
        old, new = fastest(runs, STEP_SECONDS)
        rows.append({"side": side, "before": old, "after": new, "threads": taken})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("--models", type=several(str), default=[*MODELS], help=f"of {', '.join(MODELS)}")
    parser.add_argument("--dtypes", type=several(str), default=[*DTYPES], help=f"of {', '.join(DTYPES)}")
    add_arguments(parser)
    options = parser.parse_args()
    set_up_environment()
    report = Report("kernels", options, kernels=KERNELS, steps=STEPS)
    for model in progress(options.models, "kernels"):
        with tempfile.TemporaryDirectory() as folder:
            path = DEMO if model == "demo" else Path(folder) / model
            if model != "demo":
                write_bench_model(path, DITS[model])
            for dtype in options.dtypes:
                measure(report, path, {"model": model, "dtype": dtype})


def measure(report: Report, path: Path, facts: dict[str, Any]) -> None:
    """Add the rows of one model and dtype."""
    rows = apart(kernels, path, facts["dtype"])
    for each in rows:
        report.add("kernels", **facts, **each)
    pins = tuple((each["case"], each["before"]) for each in rows)
    for each in apart(steps, path, facts["dtype"], MODELS[facts["model"]], pins):
        report.add("steps", **facts, **each)


if __name__ == "__main__":
    main()
