"""Attention over a packed row of samples that do not attend to each other.

A candidate's `run` has the signature of `Kernel`.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from engine.kernels.candidates import Candidate, Machine, everywhere, on_cpu
from engine.kernels.packing import Rows

# q and the result (S * Q, H, K), k and v (S * L, G, K), S samples; G divides H: grouped-query attention.
Kernel = Callable[[Tensor, Tensor, Tensor, int], Tensor]
Length = Literal["tiny", "short", "medium", "long"]
# Attention scores that `products` computes at a time: 4 MB in bfloat16, to stay in the processor's cache.
SCORES = 1 << 21
CUDNN = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]


def length_class(keys: int) -> Length:
    """The class of a sample of this many keys."""
    if keys < 128:
        return "tiny"
    if keys < 512:
        return "short"
    return "medium" if keys < 2048 else "long"


def native(q: Tensor, k: Tensor, v: Tensor, samples: int, causal: bool = False) -> Tensor:
    """Torch's fused kernel in the dtype of its inputs."""
    shared = q.shape[1] != k.shape[1]
    q, k, v = (x.unflatten(0, (samples, -1)).transpose(1, 2) for x in (q, k, v))  # (S, H, L, K)
    attended = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=shared)
    return attended.transpose(1, 2).flatten(0, 1)


def in_float32(q: Tensor, k: Tensor, v: Tensor, samples: int, causal: bool = False) -> Tensor:
    """Torch's fused kernel in float32."""
    return native(q.float(), k.float(), v.float(), samples, causal).to(q.dtype)


def cudnn(q: Tensor, k: Tensor, v: Tensor, samples: int) -> Tensor:
    with sdpa_kernel(CUDNN):
        return native(q, k, v, samples)


def products(q: Tensor, k: Tensor, v: Tensor, samples: int) -> Tensor:
    """Matrix product, softmax, matrix product: one head and a few rows at a time."""
    attended = torch.empty_like(q)
    rows = max(1, SCORES // (len(k) // samples))
    parts = (x.chunk(samples) for x in (q * q.shape[-1] ** -0.5, k, v, attended))
    for sample in zip(*parts, strict=True):
        for queries, keys, values, out in zip(*(x.unbind(1) for x in sample), strict=True):
            for piece, target in zip(queries.split(rows), out.split(rows), strict=True):
                target.copy_((piece @ keys.T).softmax(-1) @ values)
    return attended


def batched(q: Tensor, k: Tensor, v: Tensor, samples: int) -> Tensor:
    """Matrix product, softmax, matrix product: all heads at once."""
    q, k, v = (x.unflatten(0, (samples, -1)).transpose(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))
    attended = (q @ k.mT).softmax(-1) @ v
    return attended.transpose(1, 2).flatten(0, 1)


def _on_cpu_in_bfloat16(machine: Machine) -> bool:
    return machine == Machine("cpu", torch.bfloat16)


def _on_cuda_in_bfloat16(machine: Machine) -> bool:
    return machine == Machine("cuda", torch.bfloat16)


NATIVE = Candidate("native", native, everywhere)
FLOAT32 = Candidate("float32", in_float32, _on_cpu_in_bfloat16)
PRODUCTS = Candidate("products", products, on_cpu)
# Its scores are in memory as a whole, so long samples are not left to it.
BATCHED = Candidate("batched", batched, on_cpu)
# Takes 70 ms for every new length, which no measurement of one length shows, so short samples are not left to
# it.
CUDNN_FLASH = Candidate("cudnn", cudnn, _on_cuda_in_bfloat16)

CANDIDATES: dict[Length, tuple[Candidate, ...]] = {
    "tiny": (NATIVE, FLOAT32, PRODUCTS, BATCHED),
    "short": (NATIVE, FLOAT32, PRODUCTS, BATCHED),
    "medium": (NATIVE, FLOAT32, PRODUCTS),
    "long": (NATIVE, FLOAT32, PRODUCTS, CUDNN_FLASH),
}
CAUSAL_CANDIDATES = (
    Candidate("native", partial(native, causal=True), everywhere),
    Candidate("float32", partial(in_float32, causal=True), _on_cpu_in_bfloat16),
)


class Attend(nn.Module):
    """Softmax attention within each sample, of H heads of K; `kernels` by length class."""

    def __init__(self, heads: int, groups: int, head_dim: int, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.groups, self.head_dim, self.causal = heads, groups, head_dim, causal
        self.kernels: dict[Length, Kernel] = {length: self.candidates(length)[0].run for length in CANDIDATES}

    def candidates(self, length: Length) -> tuple[Candidate, ...]:
        return CAUSAL_CANDIDATES if self.causal else CANDIDATES[length]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, samples: int = 1) -> Tensor:
        """Attention of samples of equal lengths, with the shapes of `Kernel`."""
        return self.kernels[length_class(len(k) // samples)](q, k, v, samples)

    def packed(self, q: Tensor, k: Tensor, v: Tensor, queries: Rows, keys: Rows) -> Tensor:
        """Attention of samples of any lengths: q and the result (Q, H, K), k and v (T, G, K)."""
        if len(set(queries.lens)) == len(set(keys.lens)) == 1:
            return self(q, k, v, len(keys.lens))
        samples = zip(q.split(queries.lens), k.split(keys.lens), v.split(keys.lens), strict=True)
        return torch.cat([self(*sample) for sample in samples])
