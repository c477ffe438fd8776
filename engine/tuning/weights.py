"""Decides whether quantised weights are widened when the model is loaded."""

import copy
from collections import defaultdict
from functools import partial

import torch

from engine.checkpoint.loader import Pipeline
from engine.environment import free_memory
from engine.errors import OptionError
from engine.precision import PrecisionOptions
from engine.quantized.kept import quantized_layers, widening_bytes
from engine.quantized.layer import QuantizedLinear
from engine.runner.device import Device
from engine.tuning.machine import describe
from engine.tuning.race import race, winner
from engine.tuning.store import ChoiceStore, Measured

_SECONDS = 0.1
# Share of the free memory that widened weights may take. The rest is for activations.
_MOST = 0.75
_CHOICES = ["stored", "widened"]


def check_device(options: PrecisionOptions, device: torch.device, dtype: torch.dtype) -> None:
    """Raises OptionError if the device has no products in fp8 with results in `dtype`."""
    if options.matmul == "exact" or device.type != "cuda":
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 9):
        raise OptionError(
            f"matmul: fp8 needs a GPU of compute capability 8.9 or later, {device} has "
            f"{'.'.join(map(str, capability))}"
        )
    if dtype == torch.float32:
        raise OptionError("matmul: fp8 computes in bfloat16 on a GPU, and dtype is float32")


def widen_weights(
    pipeline: Pipeline, options: PrecisionOptions, rows: tuple[int, ...], store: ChoiceStore
) -> None:
    """Widen the quantised weights of a model as `options` say. `rows` are typical numbers of tokens.

    "auto": if they fit and are measured to be faster so, and were not quantised when they were loaded.
    Raises OptionError if they must be widened and do not fit.
    """
    layers = list(quantized_layers(pipeline.conditional, pipeline.unconditional, pipeline.text_encoder))
    if not layers or options.weights == "stored" or options.quantize:
        return
    dtype = pipeline.conditional.dtype
    needed = _needed(layers, dtype)
    if options.weights == "widened":
        _require(needed)
    elif not all(fits(bytes_, device) for device, bytes_ in needed.items()) or not _is_faster(
        pipeline, rows, store
    ):
        return
    for layer in layers:
        layer.widen(dtype)
    for device in needed:
        Device(device).release_memory()


def fits(bytes_needed: int, device: torch.device) -> bool:
    """Whether the device has room for so many more bytes of weights."""
    return bytes_needed <= _MOST * _free_bytes(device)


def _needed(layers: list[QuantizedLinear], dtype: torch.dtype) -> dict[torch.device, int]:
    by_device: defaultdict[torch.device, list[QuantizedLinear]] = defaultdict(list)
    for layer in layers:
        by_device[layer.weight.device].append(layer)
    return {device: widening_bytes(each, dtype) for device, each in by_device.items()}


def _require(needed: dict[torch.device, int]) -> None:
    for device, bytes_ in needed.items():
        if not fits(bytes_, device):
            room = _MOST * _free_bytes(device)
            raise OptionError(
                f"weights: widened needs {bytes_ / 1e9:.1f} GB more on {device}, which has room for "
                f"{room / 1e9:.1f} GB of weights beside activations"
            )


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_memory()


@torch.inference_mode()
def _is_faster(pipeline: Pipeline, rows: tuple[int, ...], store: ChoiceStore) -> bool:
    """Compare the largest layer of the blocks, stored and widened, unless `store` holds the choice."""
    blocks, dtype = pipeline.conditional.layers, pipeline.conditional.dtype
    layers = list(quantized_layers(blocks))
    if not layers:
        return False
    stored = max(layers, key=lambda layer: layer.in_features * layer.out_features)
    device = stored.weight.device
    key = {**describe(device), "dtype": dtype, "weights": stored.kind, "shape": stored.shape, "rows": rows}
    measured, _ = store.recall(key, {"weights": _CHOICES}, partial(_measure, stored, dtype, rows))
    return measured.choices["weights"] == "widened"


def _measure(stored: QuantizedLinear, dtype: torch.dtype, rows: tuple[int, ...]) -> Measured:
    widened, device = copy.deepcopy(stored), stored.weight.device
    widened.widen(dtype)
    inputs = [torch.randn(n, stored.in_features, device=device).to(dtype) for n in rows]
    runs = {
        name: [partial(layer, x) for x in inputs]
        for name, layer in zip(_CHOICES, (stored, widened), strict=True)
    }
    times = race(runs, _SECONDS, Device(device).synchronize)
    return Measured({"weights": winner(times)}, {"weights": times["stored"] / times["widened"] - 1})
