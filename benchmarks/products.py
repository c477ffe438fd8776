"""The matrix products and the attention of both transformers alone, with the fastest of torch's kernels.

No engine is faster on the same processor unless it multiplies less or has better kernels than torch.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.variants import TURBO, Job, Run, Stopwatch, no_pause
from engine.kernels.capabilities import choose_dtype
from engine.runner.device import set_up_cpu

Call = Callable[[], object]


@dataclass(frozen=True)
class Linear:
    """A product of (rows, inputs) and (inputs, outputs)."""

    rows: int
    inputs: int
    outputs: int

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.inputs * self.outputs

    def candidates(self, dtype: torch.dtype) -> Iterator[Call]:
        x, weight = torch.randn(self.rows, self.inputs).to(dtype), torch.randn(self.outputs, self.inputs)
        weight = weight.to(dtype)
        yield lambda: F.linear(x, weight)
        if torch.backends.mkldnn.is_available():
            packed = torch.ops.mkldnn._reorder_linear_weight(weight)
            yield lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")


@dataclass(frozen=True)
class Attention:
    """Softmax attention of one sample."""

    queries: int
    keys: int
    heads: int
    head_dim: int

    @property
    def flops(self) -> int:
        return 4 * self.queries * self.keys * self.heads * self.head_dim

    def candidates(self, dtype: torch.dtype) -> Iterator[Call]:
        sizes = (self.queries, self.keys, self.keys)
        q, k, v = (torch.randn(1, self.heads, size, self.head_dim).to(dtype) for size in sizes)
        yield lambda: F.scaled_dot_product_attention(q, k, v)
        if dtype != torch.float32:
            yield lambda: F.scaled_dot_product_attention(q.float(), k.float(), v.float())
        yield lambda: by_products(q[0], k[0], v[0])


def by_products(q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    """Attention as product, softmax, product, one head at a time."""
    return [(a @ b.T).softmax(-1) @ c for a, b, c in zip(q, k, v, strict=True)]


def calls(dit: dict[str, Any], job: Job) -> list[Linear | Attention]:
    """The products and the attention of both transformers in one step."""
    image = (job.side // 16) ** 2
    return [call for tokens in (image + job.tokens, image) for call in _pass(dit, tokens, image)]


def _pass(dit: dict[str, Any], tokens: int, image: int) -> Iterator[Linear | Attention]:
    heads, head_dim, inner = (
        dit[name] for name in ("num_attention_heads", "attention_head_dim", "intermediate_size")
    )
    width = heads * head_dim
    for layer in range(dit["num_layers"]):
        rows = image if layer + 1 == dit["num_layers"] else tokens  # the last block outputs image tokens only
        yield Linear(tokens, width, 3 * width)
        yield Attention(rows, tokens, heads, head_dim)
        yield Linear(rows, width, width)
        yield Linear(rows, width, 2 * inner)
        yield Linear(rows, inner, width)


def flops(dit: dict[str, Any], job: Job) -> int:
    """FLOPs of both transformers in one step: matrix products and attention."""
    return sum(call.flops for call in calls(dit, job))


class Products:
    """A variant of `benchmarks.versus` that makes no image."""

    def __init__(self, dit: dict[str, Any], dtype: torch.dtype) -> None:
        self._dit = dit
        self._fastest = cache(lambda call: fastest(call.candidates(dtype)))

    @classmethod
    def load(cls, path: Path, dtype: str) -> "Products":
        set_up_cpu(workers=1)
        config = json.loads((path / "transformer" / "config.json").read_text("utf-8"))
        return cls(config, choose_dtype(torch.device("cpu"), dtype))

    @torch.inference_mode()
    def run(self, job: Job, pause: Callable[[], object] = no_pause) -> Run:
        chosen = [self._fastest(call) for call in calls(self._dit, job)]
        watch = Stopwatch(pause)
        for _ in range(job.steps):
            for call in chosen:
                call()
            watch.step_done()
        return watch.image_done(np.zeros((1, 1, 3), np.uint8))


def fastest(candidates: Iterator[Call], runs: int = 3) -> Call:
    """The candidate with the smallest minimum of `runs` runs, after one warm-up run."""
    return min(candidates, key=lambda call: least(call, runs))


def least(call: Call, runs: int) -> float:
    """Minimum seconds of `runs` calls, after one warm-up call."""
    call()
    taken = []
    for _ in range(runs):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return min(taken)


def gflops_per_second(dit: dict[str, Any], job: Job, image_seconds: float) -> float:
    """Rate of an image's products that take `image_seconds`."""
    return (TURBO.num_inference_steps - job.first_step) * flops(dit, job) / image_seconds / 1e9
