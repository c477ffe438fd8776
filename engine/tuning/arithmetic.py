"""Chooses dtype and number of threads of a small model on a CPU, before its weights are loaded."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch

from engine.config.part_configs import DiTConfig
from engine.kernels.capabilities import choose_dtype
from engine.kernels.packing import Packing
from engine.memory.bounds import LARGE_BLOCK
from engine.models.dit import Block
from engine.tuning.machine import describe
from engine.tuning.race import CLEAR_WIN, Run, race
from engine.tuning.store import ChoiceStore, Measured

_BATCHES = (1, 4)
_SECONDS = 0.3
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """Compute type and number of threads."""

    dtype: torch.dtype
    threads: int


def choose_arithmetic(
    device: torch.device, asked: str | None, config: DiTConfig, tokens: int, store: ChoiceStore
) -> Arithmetic:
    """Measure one block of random weights on samples of this many tokens.

    bfloat16 and all threads are the defaults, where they are available; another dtype must be clearly faster,
    and fewer threads at most slightly slower. `asked` and OMP_NUM_THREADS are final.
    """
    default = Arithmetic(choose_dtype(device, asked), torch.get_num_threads())
    options = _options(default, asked)
    if device.type != "cpu" or len(options) == 1 or _block_weights(config) >= LARGE_BLOCK:
        return default
    names = {_name(option): option for option in options}
    key = {**describe(device), "block": config, "tokens": tokens, "arithmetic": list(names)}
    measure = partial(_measure, names, config, tokens)
    measured, _ = store.recall(key, {"arithmetic": list(names)}, measure)
    return names[measured.choices["arithmetic"]]


def _options(default: Arithmetic, asked: str | None) -> list[Arithmetic]:
    """The default first; of each dtype, more threads before fewer."""
    dtypes = [default.dtype] if asked or default.dtype == torch.float32 else [default.dtype, torch.float32]
    counts = [default.threads]
    while counts[-1] > 1 and "OMP_NUM_THREADS" not in os.environ:
        counts.append(counts[-1] // 2)
    return [Arithmetic(*each) for each in product(dtypes, counts)]


def _name(option: Arithmetic) -> str:
    return f"{str(option.dtype).removeprefix('torch.')}, {option.threads} threads"


def _block_weights(config: DiTConfig) -> int:
    with torch.device("meta"):
        return sum(weight.numel() for weight in Block(config).parameters())


@torch.inference_mode()
def _measure(options: dict[str, Arithmetic], config: DiTConfig, tokens: int) -> Measured:
    before = torch.get_num_threads()
    blocks = {dtype: Block(config).to(dtype) for dtype in {each.dtype for each in options.values()}}
    runs = {
        name: [partial(_run, option, step) for step in _steps(blocks[option.dtype], option, config, tokens)]
        for name, option in options.items()
    }
    try:
        times = race(runs, _SECONDS)
    finally:
        torch.set_num_threads(before)
    chosen = _choose(options, times)
    first = next(iter(options))
    return Measured({"arithmetic": chosen}, {"arithmetic": times[first] / times[chosen] - 1})


def _choose(options: dict[str, Arithmetic], times: dict[str, float]) -> str:
    """The fastest dtype, if it is clearly faster, and the fewest threads that are hardly slower."""
    first = next(iter(options.values())).dtype
    least = {
        dtype: min(times[name] for name in options if options[name].dtype == dtype)
        for dtype in DTYPES.values()
        if any(option.dtype == dtype for option in options.values())
    }
    fastest = min(least, key=least.__getitem__)
    dtype = fastest if least[fastest] <= CLEAR_WIN * least[first] else first
    good = [
        n for n, option in options.items() if option.dtype == dtype and CLEAR_WIN * times[n] <= least[dtype]
    ]
    return min(good, key=lambda name: options[name].threads)


def _run(option: Arithmetic, step: Run) -> None:
    if torch.get_num_threads() != option.threads:
        torch.set_num_threads(option.threads)
    step()


def _steps(block: Block, option: Arithmetic, config: DiTConfig, tokens: int) -> list[Run]:
    return [partial(_forward, block, *_inputs(option.dtype, config, [tokens] * n)) for n in _BATCHES]


def _inputs(
    dtype: torch.dtype, config: DiTConfig, lens: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Packing]:
    width, total = config.hidden_size, sum(lens)
    packing = Packing.build([0] * len(lens), list(lens), "cpu")
    angles = torch.randn(2, total, 1, config.attention_head_dim // 2)
    return torch.randn(total, width).to(dtype), torch.randn(len(lens), 4, width).to(dtype), angles, packing


def _forward(
    block: Block, x: torch.Tensor, modulation: torch.Tensor, rotary: torch.Tensor, packing: Packing
) -> None:
    samples = packing.tokens.samples
    q, k, v = block.before_attention(x, modulation, samples, rotary)
    attended = block.attention.attend.packed(q, k, v, packing.tokens, packing.tokens)
    block.after_attention(x, attended, modulation, samples)
