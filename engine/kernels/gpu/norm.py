"""RMSNorm, alone and with rotary position embedding: each reads its input once and writes its result once."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rms_norm(x, weight, out, size, weight_stride, eps, has_weight: tl.constexpr, block: tl.constexpr):
    """One program per row; `weight_stride` is 0 if all rows share the weight."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    inside = columns < size
    values = tl.load(x + row * size + columns, mask=inside, other=0.0).to(tl.float32)
    normed = values * tl.rsqrt(tl.sum(values * values, axis=0) / size + eps)
    if has_weight:
        normed *= tl.load(weight + row * weight_stride + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * size + columns, normed.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _norm_rotary(
    x, weight, rotary, out, heads, group, tokens, half, token_stride, head_stride, eps, block: tl.constexpr
):
    """One program per token and head, which loads both halves of the head; a weight serves `group` heads."""
    row = tl.program_id(0).to(tl.int64)
    token, head = row // heads, row % heads
    columns = tl.arange(0, block)
    inside = columns < half
    first_at = x + token * token_stride + head * head_stride + columns
    first = tl.load(first_at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(first_at + half, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(first * first + second * second, axis=0) / (2 * half) + eps)
    weight_at = weight + head // group * 2 * half + columns
    first *= scale * tl.load(weight_at, mask=inside, other=0.0).to(tl.float32)
    second *= scale * tl.load(weight_at + half, mask=inside, other=0.0).to(tl.float32)
    cos = tl.load(rotary + token * half + columns, mask=inside, other=0.0)
    sin = tl.load(rotary + (tokens + token) * half + columns, mask=inside, other=0.0)
    to = out + row * 2 * half + columns
    tl.store(to, (first * cos - second * sin).to(out.dtype.element_ty), mask=inside)
    tl.store(to + half, (second * cos + first * sin).to(out.dtype.element_ty), mask=inside)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """`engine.kernels.norm.Kernel`."""
    x = x.contiguous()
    size = x.shape[-1]
    out = torch.empty_like(x)
    is_shared = weight is None or weight.numel() == size
    if weight is not None and not is_shared:
        weight = weight.expand_as(x).contiguous()
    grid = (x.numel() // size,)
    _rms_norm[grid](
        x,
        weight,
        out,
        size,
        0 if is_shared else size,
        eps,
        has_weight=weight is not None,
        block=triton.next_power_of_2(size),
    )
    return out


def norm_rotary(x: Tensor, weight: Tensor, eps: float, rotary: Tensor) -> Tensor:
    """`engine.kernels.rotary.Kernel`; the weight's leading dimensions are those of x after the first."""
    heads = x.flatten(1, -2)  # (T, H, K), a view of the projection where its layout permits
    if heads.stride(-1) != 1:
        heads = heads.contiguous()
    tokens, count, size = heads.shape
    weight = weight.contiguous()
    out = x.new_empty(x.shape)
    _norm_rotary[(tokens * count,)](
        heads,
        weight,
        rotary.contiguous(),
        out,
        count,
        count * size // weight.numel(),
        tokens,
        size // 2,
        heads.stride(0),
        heads.stride(1),
        eps,
        block=triton.next_power_of_2(size // 2),
    )
    return out
