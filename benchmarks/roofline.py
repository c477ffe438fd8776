"""Count the work of the published model, and the time that it must take: `python -m benchmarks.roofline`.

For each stage, the operations and bytes; for each GPU and weight format, the seconds that they take at the
peak rates of the data sheet, which no engine can beat. Beside them: what others published, and what `make
gpu` measured (benchmarks/results). A prediction is the bound divided by the share of it that one H100 reached
(benchmarks/gpus.py).

fp8 means weights and products in fp8, attention and convolutions in bfloat16. nf4 means weights in nf4, and
products in bfloat16.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

from benchmarks.gpus import BYTES_PER_WEIGHT, GPUS, SHARE, VAE_SHARE, Gpu
from benchmarks.load import TEXT
from benchmarks.random_checkpoint import Layout, write_checkpoint
from benchmarks.report import Row, add_arguments, machine, say, write
from benchmarks.tables import RESULTS, Columns, markdown, reports
from engine.config.model_config import PUBLISHED_PRESETS, ModelConfig
from engine.config.options import EngineOptions
from engine.config.part_configs import (
    PUBLISHED_TAPS,
    DiTConfig,
    PartConfigs,
    TextConfig,
    TextEncoderConfig,
    VAEConfig,
)
from engine.config.part_folders import PartFolders
from engine.memory.plan import MemoryPlan

VALUE = 2  # bytes of a bfloat16
PROMPT = 300  # tokens of a structured caption
SIDES = (512, 1024, 2048)
PUBLISHED = PartConfigs(
    TextEncoderConfig(TextConfig(), PUBLISHED_TAPS), DiTConfig(), DiTConfig(), VAEConfig()
)


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


@dataclass(frozen=True, slots=True)
class Work:
    """Operations of products with weights and of all else; weights, and bytes of activations read and
    written."""

    products: float = 0.0
    others: float = 0.0
    weights: float = 0.0
    traffic: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.products + other.products,
            self.others + other.others,
            self.weights + other.weights,
            self.traffic + other.traffic,
        )

    @property
    def flops(self) -> float:
        return self.products + self.others

    def seconds(self, gpu: Gpu, layout: str) -> float:
        """At the peak rates: of the arithmetic or of the memory, whichever takes longer."""
        rate = gpu.fp8 if layout == "fp8" else gpu.bf16
        arithmetic = self.products / rate + self.others / gpu.bf16
        return max(arithmetic, (self.weights * BYTES_PER_WEIGHT[layout] + self.traffic) / gpu.bandwidth)


def product(rows: int, inputs: int, outputs: int) -> Work:
    """A product with a matrix of weights."""
    return Work(2 * rows * inputs * outputs, 0, inputs * outputs, VALUE * rows * (inputs + outputs))


def attention(queries: int, keys: int, width: int, key_width: int) -> Work:
    return Work(0, 4 * queries * keys * width, 0, VALUE * (2 * queries * width + 2 * keys * key_width))


def convolution(area: int, inputs: int, outputs: int, kernel: int = 3, reduction: int = 1) -> Work:
    """`area` is that of the output, whose input is `reduction` times smaller."""
    weights = kernel**2 * inputs * outputs
    return Work(0, 2 * area * weights, weights, VALUE * area * (inputs / reduction + outputs))


def total(works: Iterator[Work]) -> Work:
    return sum(works, Work())


def encode(configs: PartConfigs, tokens: int) -> Work:
    """The text encoder and the projection of its features."""
    text, dit = configs.text_encoder.text_config, configs.transformer
    layer = total(_text_layer(text, tokens))
    layers = total(layer for _ in range(text.num_hidden_layers))
    return layers + product(tokens, configs.text_encoder.features_dim, dit.hidden_size)


def _text_layer(text: TextConfig, tokens: int) -> Iterator[Work]:
    width, inner = text.hidden_size, text.intermediate_size
    queries, keys = (heads * text.head_dim for heads in (text.num_attention_heads, text.num_key_value_heads))
    yield from (product(tokens, width, outputs) for outputs in (queries, keys, keys))
    yield attention(tokens, tokens, queries, keys)
    yield product(tokens, queries, width)
    yield from (product(tokens, *sizes) for sizes in ((width, inner), (width, inner), (inner, width)))


def modulate(configs: PartConfigs, steps: int) -> Work:
    """What depends on the times of a schedule alone, of one transformer."""
    dit = configs.transformer
    width, adaln = dit.hidden_size, dit.adaln_dim
    embedding = product(steps, width, width) + product(steps, width, width) + product(steps, width, adaln)
    blocks = total(product(steps, adaln, 4 * width) for _ in range(dit.num_layers))
    return embedding + blocks + product(steps, adaln, width)


def step(configs: PartConfigs, image: int, prompt: int) -> Work:
    """A pass of both transformers over one image, of `image` tokens."""
    return forward(configs.transformer, image, prompt) + forward(configs.transformer, image, 0)


def forward(dit: DiTConfig, image: int, prompt: int) -> Work:
    """A pass of a transformer. The last block computes the tokens of the image only."""
    width, ends = dit.hidden_size, product(image, dit.in_channels, dit.hidden_size)
    rows = [image + prompt] * (dit.num_layers - 1) + [image]
    blocks = total(each for count in rows for each in _block(dit, count, image + prompt))
    return ends + blocks + product(image, width, dit.in_channels)


def _block(dit: DiTConfig, rows: int, keys: int) -> Iterator[Work]:
    width, inner = dit.hidden_size, dit.intermediate_size
    yield product(keys, width, 3 * width)
    yield attention(rows, keys, width, width)
    yield product(rows, width, width)
    yield product(rows, width, 2 * inner)
    yield product(rows, inner, width)


def decode(vae: VAEConfig, area: int) -> Work:
    """The decoder, over `area` latents."""
    channels, latent = tuple(reversed(vae.decoder_channels)), vae.latent_channels
    quant = convolution(area, latent, latent, kernel=1) if vae.use_post_quant_conv else Work()
    ends = convolution(area, latent, channels[0]) + convolution(
        area * vae.scale_factor**2, channels[-1], vae.out_channels
    )
    return quant + ends + total(_middle(vae, area, channels[0])) + total(_levels(vae, area, channels))


def _middle(vae: VAEConfig, area: int, width: int) -> Iterator[Work]:
    yield from (convolution(area, width, width) for _ in range(4))
    if vae.mid_block_add_attention:
        yield attention(area, area, width, width)
        yield from (product(area, width, width) for _ in range(4))


def _levels(vae: VAEConfig, area: int, channels: Sequence[int]) -> Iterator[Work]:
    before = channels[0]
    for level, width in enumerate(channels):
        size = area * 4**level
        yield convolution(size, before, width)
        yield from (convolution(size, width, width) for _ in range(2 * vae.layers_per_block + 1))
        if before != width:
            yield convolution(size, before, width, kernel=1)
        if level + 1 < len(channels):
            yield convolution(4 * size, width, width, reduction=4)
        before = width


def tokens(side: int) -> int:
    return (side // PUBLISHED.vae.pixels_per_token) ** 2


def stages(side: int, prompt: int = PROMPT) -> dict[str, Work]:
    """The work of one image: once, in each step, once."""
    return {
        "encode": encode(PUBLISHED, prompt),
        "step": step(PUBLISHED, tokens(side), prompt),
        "decode": decode(PUBLISHED.vae, 4 * tokens(side)),
    }


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


def published_plan(folder: Path, is_guided: bool = True) -> MemoryPlan:
    """The plan on a GPU of a checkpoint of published sizes in `folder`, whose capacity does not matter."""
    (folder / "model_index.json").write_text("{}", "utf-8")
    config = ModelConfig.load(folder, "published")
    config = replace(config, folders=PartFolders.of(folder, is_guided=is_guided))
    return replace(
        MemoryPlan.of(config, EngineOptions(("cuda",))), itemsize=VALUE, is_cuda=True, capacity=None
    )


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
