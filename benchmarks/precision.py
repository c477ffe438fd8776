"""Measure what products in fp8 cost in precision: `python -m benchmarks.precision`.

The weights are fp8 in every row, so the errors are those of the products alone, relative to exact products in
float32. A transformer is measured on the steps of a few images, the text encoder on their prompts: with a
single kind of layer in fp8, with a single block, and as `--matmul fp8` does. Runs on the CPU.
"""

import argparse
import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.report import ROOT, Report, add_arguments, progress, several
from benchmarks.variants import load_tokenizer
from engine.checkpoint.loader import Pipeline, load_pipeline
from engine.config.model_config import ModelConfig
from engine.config.part_folders import PartFolders
from engine.kernels.packing import Packing
from engine.models.dit import DiT
from engine.models.resumable import drain
from engine.precision import PrecisionOptions, stays_exact
from engine.quantized.fp8 import Fp8Linear
from engine.quantized.fp8_product import Fp8Product, multiply_in_fp8
from engine.quantized.layer import QuantizedLinear
from engine.request import EngineRequest, SamplingParams
from engine.runner.model_runner import ModelRunner
from engine.runner.request_state import RequestState

PROMPTS = (
    "a red circle on a white background",
    "the letter K in green on black",
    "a blue star on a yellow background",
)
# Exact weights and products, fp8 weights, products in fp8, nf4 weights.
PRECISIONS = {
    "exact": PrecisionOptions(),
    "fp8 weights": PrecisionOptions(quantize="fp8"),
    "fp8 products": PrecisionOptions(quantize="fp8", matmul="fp8"),
    "nf4 weights": PrecisionOptions(quantize="nf4"),
}
LAYERS = {
    "model": "<6",
    "part": "<13",
    "layers": "<24",
    "weights": "8.1%",
    "product": "8.2%",
    "output": "8.3%",
}
IMAGES = {"model": "<6", "precision": "<13", "dtype": "<9", "latents": "8.2%", "mean": "6.2f", "most": "5d"}
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Steps:
    """The inputs of a transformer in all steps of an image: latents (steps, N, C), times (steps)."""

    features: Tensor
    latents: Tensor
    times: Tensor
    grid: tuple[int, int]

    def velocities(self, dit: DiT, text: bool) -> Tensor:
        """Of each step, computed from the features and times anew."""
        projected = [dit.project_text(self.features)] if text else []
        length, (rows, columns) = len(projected[0]) if text else 0, self.grid
        packing, rotary = Packing.build([length], [rows * columns], "cpu"), dit.rotary(length, rows, columns)
        modulation = dit.modulate(self.times)
        steps = enumerate(self.latents)
        return torch.stack([dit(z, projected, modulation.at(i), rotary, packing) for i, z in steps])


def request(
    pipeline: Pipeline, tokenizer: Any, prompt: str, side: int, steps: int, seed: int
) -> EngineRequest:
    sampling = SamplingParams((3.0,) * steps, mu=1.4, std=1.5)
    return EngineRequest(prompt, tokenizer.encode(prompt), side, side, (seed,), sampling)


def run(runner: ModelRunner, wanted: EngineRequest) -> tuple[Steps, Tensor, np.ndarray[Any, Any]]:
    """All steps of an image, its last latents and its pixels."""
    state = RequestState(wanted)
    (state.conditioning,) = drain(runner.encode([wanted]))
    sample, latents = runner.new_sample(state, 0), []
    while not sample.is_finished:
        latents.append(sample.latents)
        runner.denoise_step([sample])
    (pixels,) = drain(runner.decode([sample]))
    assert isinstance(pixels, bytes), pixels
    features = runner.pipeline.text_encoder(wanted.token_ids)
    grid = wanted.height // runner.pixels_per_token, wanted.width // runner.pixels_per_token
    steps = Steps(features, torch.stack(latents), state.conditioning.times[:-1].float(), grid)
    return steps, sample.latents, np.frombuffer(pixels, np.uint8).astype(np.int64)


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def in_fp8(part: Module, is_exact: Callable[[str], bool]) -> Module:
    """A copy whose products are in fp8."""
    changed = copy.deepcopy(part)
    multiply_in_fp8(changed, is_exact)
    return changed


def groups(part: nn.Module) -> Iterator[tuple[str, Callable[[str], bool]]]:
    """Sets of layers to measure alone: a title, and whether a layer is outside the set."""
    names = [name for name, layer in part.named_modules() if isinstance(layer, Fp8Linear)]
    for kind in dict.fromkeys(map(_kind, names)):
        yield kind, partial(_is_other, kind)
    blocks = [int(name.partition("layers.")[2].partition(".")[0]) for name in names if "layers." in name]
    for index in (min(blocks), max(blocks)):
        yield f"block {index}", partial(_is_outside, f"layers.{index}.")
    yield "all", lambda name: False
    yield "--matmul fp8", stays_exact


def _is_outside(block: str, name: str) -> bool:
    """Also of a layer that stays exact in every block."""
    return block not in name or stays_exact(name.replace(block, "layers.1."))


def _is_other(kind: str, name: str) -> bool:
    return _kind(name) != kind


def _kind(name: str) -> str:
    """The name without the index of the block."""
    before, layers, rest = name.partition("layers.")
    return rest.partition(".")[2] if layers else before


def product_errors(part: Module, call: Callable[[Module], object]) -> dict[str, float]:
    """The largest error of each product in fp8, on the inputs that it has in the exact model."""
    products = dict(_products(in_fp8(part, lambda name: False)))
    errors = dict.fromkeys(products, 0.0)

    def compare(name: str, inputs: tuple[Tensor, ...], y: Tensor) -> None:
        errors[name] = max(errors[name], relative(products[name](inputs[0]), y))

    hooks = [
        part.get_submodule(name).register_forward_hook(
            lambda _, inputs, y, name=name: compare(name, inputs, y)
        )
        for name in products
    ]
    call(part)
    for hook in hooks:
        hook.remove()
    return errors


def _products(part: nn.Module) -> Iterator[tuple[str, Fp8Product]]:
    return ((name, layer) for name, layer in part.named_modules() if isinstance(layer, Fp8Product))


def measure_part(
    report: Report, model: str, title: str, part: Module, outputs: Callable[[Module], Tensor]
) -> None:
    """Add a row for each group of layers that the report does not hold yet."""
    missing = [
        group for group in groups(part) if not report.rows("layers", model=model, part=title, layers=group[0])
    ]
    if not missing:
        return
    exact, total, errors = outputs(part), _weights(part), product_errors(part, outputs)
    for name, is_exact in progress(missing, f"{model}, {title}"):
        changed = in_fp8(part, is_exact)
        products = dict(_products(changed))
        share = sum(layer.weight.numel() for layer in products.values()) / total
        cells = {
            "product": max(map(errors.__getitem__, products), default=0.0),
            "output": relative(outputs(changed), exact),
        }
        report.add("layers", model=model, part=title, layers=name, weights=share, **cells)


def _weights(part: nn.Module) -> int:
    return sum(layer.weight.numel() for layer in part.modules() if isinstance(layer, QuantizedLinear))


def measure_layers(report: Report, model: str, folders: PartFolders, side: int, steps: int) -> None:
    pipeline = load_pipeline(folders, "cpu", torch.float32, precision=PrecisionOptions(quantize="fp8"))
    tokenizer = load_tokenizer(folders.tokenizer.parent)
    runner = ModelRunner(pipeline, "cpu")
    asked = [request(pipeline, tokenizer, prompt, side, steps, seed) for seed, prompt in enumerate(PROMPTS)]
    images = [run(runner, each)[0] for each in asked]

    def of_transformer(text: bool) -> Callable[[DiT], Tensor]:
        return lambda dit: torch.cat([image.velocities(dit, text).flatten() for image in images])

    measure_part(report, model, "conditional", pipeline.conditional, of_transformer(True))
    measure_part(report, model, "unconditional", pipeline.unconditional, of_transformer(False))
    prompts = [each.token_ids for each in asked]
    measure_part(
        report,
        model,
        "text encoder",
        pipeline.text_encoder,
        lambda encoder: torch.cat([encoder(prompt).flatten() for prompt in prompts]),
    )


def measure_images(report: Report, model: str, folders: PartFolders, side: int, steps: int) -> None:
    """Compare images with those of the exact model in float32."""
    tokenizer = load_tokenizer(folders.tokenizer.parent)
    wanted: list[tuple[Tensor, np.ndarray[Any, Any]]] = []
    variants = [("exact", torch.float32), *((name, torch.bfloat16) for name in PRECISIONS)]
    for name, dtype in progress(variants, f"{model}, images"):
        pipeline = load_pipeline(folders, "cpu", dtype, precision=PRECISIONS[name])
        runner = ModelRunner(pipeline, "cpu")
        asked = [request(pipeline, tokenizer, prompt, side, steps, i) for i, prompt in enumerate(PROMPTS)]
        made = [run(runner, each)[1:] for each in asked]
        wanted = wanted or made
        pairs = list(zip(made, wanted, strict=True))
        differences = np.concatenate([np.abs(pixels - expected) for (_, pixels), (_, expected) in pairs])
        latents = relative(torch.stack([z for z, _ in made]), torch.stack([z for z, _ in wanted]))
        cells = {"latents": latents, "mean": float(differences.mean()), "most": int(differences.max())}
        report.add("images", model=model, precision=name, dtype=str(dtype).removeprefix("torch."), **cells)


@contextmanager
def checkpoint(model: str) -> Iterator[tuple[PartFolders, int]]:
    """The folders of a model, and the side of its images in pixels."""
    if model == "demo":
        yield ModelConfig.load(ROOT / "models" / "demo").folders, 128
        return
    from tests.engine.checkpoints import write_checkpoint

    with TemporaryDirectory() as folder:
        yield PartFolders.of(write_checkpoint(Path(folder), "official").path), 256


@torch.inference_mode()
def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    report = Report("precision", options, resume=True, layers=LAYERS, images=IMAGES)
    for measure, models in ((measure_layers, options.layers), (measure_images, options.images)):
        for model in models:
            with checkpoint(model) as (folders, side):
                measure(report, model, folders, side, options.steps)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__)
    made.add_argument("--steps", type=int, default=4, help="steps of each image")
    models = {"type": several(str), "default": ["demo", "random"]}
    made.add_argument("--layers", **models, help="models whose layers are measured (default demo,random)")
    made.add_argument("--images", **models, help="models whose images are compared (default demo,random)")
    add_arguments(made)
    return made


if __name__ == "__main__":
    main()
