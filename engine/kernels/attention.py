"""Attention over a packed row of samples that do not attend to each other."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from engine.kernels.packing import Rows

# Attention scores computed at a time on a CPU in bfloat16: 4 MB, to stay in its cache.
SCORES = 1 << 21
# From this many keys on, CUDA uses cuDNN.
CUDNN_KEYS = 2048
CUDNN = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, queries: Rows, keys: Rows, causal: bool = False
) -> Tensor:
    """Softmax attention within each sample: q and the result (Q, H, K), k and v (T, G, K)."""
    if len(set(queries.lens)) == len(set(keys.lens)) == 1:
        return attend(q, k, v, len(keys.lens), causal)
    samples = zip(q.split(queries.lens), k.split(keys.lens), v.split(keys.lens), strict=True)
    return torch.cat([attend(*sample, causal=causal) for sample in samples])


def attend(q: Tensor, k: Tensor, v: Tensor, samples: int = 1, causal: bool = False) -> Tensor:
    """Attention over S samples of equal lengths: q and the result (S * Q, H, K), k and v (S * L, G, K).

    G divides H: grouped-query attention.
    """
    if not causal and _wants_products(q, len(k) // samples):
        return _by_products(q, k, v, samples)
    dtype = q.dtype
    if q.device.type == "cpu":  # the fused CPU kernel is faster in float32, even with bfloat16 instructions
        q, k, v = q.float(), k.float(), v.float()
    q, k, v = (x.unflatten(0, (samples, -1)).transpose(1, 2) for x in (q, k, v))  # (S, H, L, K)
    shared = q.shape[1] != k.shape[1]
    with sdpa_kernel(CUDNN) if _wants_cudnn(q, k) else nullcontext():
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=shared)
    return attended.transpose(1, 2).flatten(0, 1).to(dtype)


def _wants_cudnn(q: Tensor, k: Tensor) -> bool:
    """cuDNN is twice as fast for large images on an H100, but has a set-up cost for every new length."""
    return q.is_cuda and q.dtype == torch.bfloat16 and k.shape[2] >= CUDNN_KEYS


def _wants_products(q: Tensor, keys: int) -> bool:
    """The fused CPU kernel multiplies in float32; large heads gain from plain bfloat16 products."""
    return q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[-1] >= 128 and keys >= 128


def _by_products(q: Tensor, k: Tensor, v: Tensor, samples: int) -> Tensor:
    """Matrix product, softmax, matrix product: one head and a few rows at a time."""
    attended = torch.empty_like(q)
    rows = max(1, SCORES // (len(k) // samples))
    parts = (x.chunk(samples) for x in (q * q.shape[-1] ** -0.5, k, v, attended))
    for sample in zip(*parts, strict=True):
        for queries, keys, values, out in zip(*(x.unbind(1) for x in sample), strict=True):
            for piece, target in zip(queries.split(rows), out.split(rows), strict=True):
                target.copy_((piece @ keys.T).softmax(-1) @ values)
    return attended
