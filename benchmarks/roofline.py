"""Count the work of the published model, and the time that it must take: `python -m benchmarks.roofline`.

For each stage, the operations and bytes; for each GPU and weight format, the seconds that they take at the
peak rates of the data sheet, which no engine can beat. Beside them: what others published, and what `make
gpu` measured (benchmarks/results). A prediction is the bound divided by the share of it that one H100 reached
(benchmarks/gpus.py).

fp8 means weights and products in fp8, attention and convolutions in bfloat16. nf4 means weights in nf4, and
products in bfloat16.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

from benchmarks.gpus import BYTES_PER_WEIGHT, GPUS, SHARE, VAE_SHARE, Gpu
from benchmarks.load import TEXT
from benchmarks.markdown import Columns, markdown
from benchmarks.plans import published_plan
from benchmarks.random_checkpoint import Layout, write_checkpoint
from benchmarks.report import Row, add_arguments, machine, say, write
from benchmarks.tables import RESULTS, reports
from benchmarks.work import PROMPT, stages
from engine.config.model_config import PUBLISHED_PRESETS
from engine.config.part_configs import DiTConfig, VAEConfig

SIDES = (512, 1024, 2048)


@dataclass(frozen=True, slots=True)
class Published:
    """What another server reported for images of 1024x1024; `arithmetic` is the format whose bound
    applies."""

    gpu: str
    what: str
    arithmetic: str
    preset: str
    seconds: float
    cards: int = 1


OTHERS = (
    Published("H100 SXM", "SGLang, fp8 weights, products in bfloat16", "bf16", "V4_QUALITY_48", 20.98),
    Published("H100 SXM", "SGLang, the same, tensor parallel", "bf16", "V4_QUALITY_48", 8.98, cards=2),
    Published("B200", "NVFP4 weights and products", "fp8", "V4_QUALITY_48", 5.42),
    Published("RTX 4090", "nf4", "nf4", "V4_TURBO_12", 21),
    Published("RTX 4090", "nf4", "nf4", "V4_DEFAULT_20", 32),
    Published("RTX 4090", "nf4", "nf4", "V4_QUALITY_48", 72),
)


def bound(gpu: Gpu, layout: str, side: int, steps: int, prompt: int = PROMPT) -> float:
    """Seconds of one image, at least."""
    work = stages(side, prompt)
    once = work["encode"].seconds(gpu, layout) + work["decode"].seconds(gpu, layout)
    return once + steps * work["step"].seconds(gpu, layout)


def presets() -> Mapping[str, int]:
    """The steps of each published preset, those with few first."""
    steps = {name: preset.num_inference_steps for name, preset in PUBLISHED_PRESETS.items()}
    return dict(sorted(steps.items(), key=lambda item: item[1]))


def work_rows() -> Iterator[Row]:
    for side in SIDES:
        for stage, work in stages(side).items():
            if stage == "encode" and side != SIDES[0]:
                continue
            name = f"{stage}, {PROMPT} tokens" if stage == "encode" else f"{stage}, {side} px"
            yield {
                "stage": name,
                "products, TFLOP": work.products / 1e12,
                "others, TFLOP": work.others / 1e12,
                "weights": work.weights / 1e9,
                "traffic, GB": work.traffic / 1e9,
            }


def memory_rows() -> Iterator[Row]:
    """The plan of each format, with both transformers and with one."""
    for layout in get_args(Layout):
        with TemporaryDirectory() as folder:
            write_checkpoint(Path(folder), layout, DiTConfig(), TEXT, VAEConfig(), full=())
            for is_guided in (True, False):
                plan = published_plan(Path(folder), is_guided)
                peaks = {f"{side} px": plan.peak(side, side) / 1e9 for side in SIDES}
                weights = sum(plan.kept.values()) / 1e9
                yield {"weights": layout, "transformers": 1 + is_guided, "weights, GB": weights, **peaks}


def bound_rows() -> Iterator[Row]:
    for gpu in GPUS:
        for layout in BYTES_PER_WEIGHT:
            row: Row = {"gpu": gpu.name, "layout": layout}
            for side in SIDES:
                row[f"{side} px, ms"] = stages(side)["step"].seconds(gpu, layout) * 1e3
            yield row | {name: bound(gpu, layout, 1024, steps) for name, steps in presets().items()}


def prediction_rows() -> Iterator[Row]:
    """In bfloat16, the format of the measurement; other GPUs are assumed to reach the same shares."""
    for gpu in GPUS:
        for side in SIDES:
            row: Row = {"gpu": gpu.name, "side": side}
            row["step, ms"] = stages(side)["step"].seconds(gpu, "bf16") / SHARE * 1e3
            yield row | {name: predicted(gpu, side, steps) for name, steps in presets().items()}


def predicted(gpu: Gpu, side: int, steps: int) -> float:
    """Seconds of one image in bfloat16."""
    encode, step, decode = (work.seconds(gpu, "bf16") for work in stages(side).values())
    return (encode + steps * step) / SHARE + decode / VAE_SHARE


def published_rows() -> Iterator[Row]:
    gpus = {gpu.name: gpu for gpu in GPUS}
    for each in OTHERS:
        least = bound(gpus[each.gpu], each.arithmetic, 1024, presets()[each.preset]) / each.cards
        row: Row = {"gpu": each.gpu, "cards": each.cards, "what": each.what, "preset": each.preset}
        yield row | {"seconds": each.seconds, "bound": least, "share": least / each.seconds}


def measured_rows() -> Iterator[Row]:
    """Steps of this engine in bfloat16, in the results of `make gpu`."""
    for folder in sorted(path for path in RESULTS.iterdir() if path.is_dir()):
        for report in reports(folder).get("published", []):
            card = report["machine"]["card"] or ""
            for gpu in (each for each in GPUS if each.name.split()[0] in card):
                yield from (_measured(gpu, row) for row in report["tables"]["images"] if _is_step(row))


def _is_step(row: Row) -> bool:
    return row["variant"] == "ours, compiled" and bool(row.get("step, ms"))


def _measured(gpu: Gpu, row: Row) -> Row:
    least = stages(row["side"], row["tokens"])["step"].seconds(gpu, "bf16") * 1e3
    return {
        "gpu": gpu.name,
        "side": row["side"],
        "measured": row["step, ms"],
        "bound": least,
        "share": least / row["step, ms"],
    }


def _preset_columns() -> list[tuple[str, str]]:
    return [(name.removeprefix("V4_"), f"{{{name}:.1f}} s") for name in presets()]


# Heading, rows, columns of each table.
TABLES: dict[str, tuple[str, Callable[[], Iterator[Row]], Columns]] = {
    "memory": (
        "Planned memory, both transformers or one, one image at a time:",
        memory_rows,
        [("weights", "{weights}"), ("transformers", "{transformers}"), ("weights", "{weights, GB:.1f} GB")]
        + [(f"peak at {side}x{side}", f"{{{side} px:.1f}} GB") for side in SIDES],
    ),
    "work": (
        f"Counted work of one image, with a prompt of {PROMPT} tokens:",
        work_rows,
        [
            ("stage", "{stage}"),
            ("products", "{products, TFLOP:.2f} TFLOP"),
            ("attention, convolutions", "{others, TFLOP:.2f} TFLOP"),
            ("weights", "{weights:.2f} billion"),
            ("activations", "{traffic, GB:.2f} GB"),
        ],
    ),
    "bounds": (
        "Bounds: the time at the peak rates of the data sheet, steps by size, images of 1024x1024:",
        bound_rows,
        [("GPU", "{gpu}"), ("format", "{layout}")]
        + [(f"step, {side} px", f"{{{side} px, ms:.0f}} ms") for side in SIDES]
        + _preset_columns(),
    ),
    "predictions": (
        f"**Predicted** with bfloat16 weights, at {SHARE:.0%} of the bound:",
        prediction_rows,
        [("GPU", "{gpu}"), ("size", "{side} px"), ("step", "{step, ms:.0f} ms"), *_preset_columns()],
    ),
    "measured": (
        "**Measured** (`make gpu`, bfloat16, compiled, prompts of 100 tokens), beside the bound:",
        measured_rows,
        [
            ("GPU", "{gpu}"),
            ("size", "{side} px"),
            ("step", "{measured:.0f} ms"),
            ("bound", "{bound:.0f} ms"),
            ("share", "{share:.0%}"),
        ],
    ),
    "published": (
        "Published by others, images of 1024x1024, beside the bound of their arithmetic (NVFP4: of fp8):",
        published_rows,
        [
            ("GPU", "{cards} x {gpu}"),
            ("what", "{what}"),
            ("preset", "{preset}"),
            ("seconds", "{seconds:.1f} s"),
            ("bound", "{bound:.1f} s"),
            ("share", "{share:.0%}"),
        ],
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.roofline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    options = parser.parse_args()
    rows = {name: list(table[1]()) for name, table in TABLES.items()}
    for name, (heading, _, columns) in TABLES.items():
        say("\n".join(["", heading, "", *markdown(rows[name], columns)]))
    if options.json:
        write(options.json, {"benchmark": "roofline", "machine": machine(), "options": {}, "tables": rows})


if __name__ == "__main__":
    main()
