"""Attention over a packed row of samples that never look at each other."""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Packing:
    """Where each sample lies in the packed row: [text_0][image_0][text_1][image_1]...

    `offsets` are the B + 1 borders of the samples; `samples` (T,) and `image_samples` (N,) name each
    token's sample, `image_index` (N,) the row of each image token; None where B is 1 or there is no text.
    """

    text_lens: tuple[int, ...]
    image_lens: tuple[int, ...]
    offsets: tuple[int, ...]
    samples: Tensor | None
    image_samples: Tensor | None
    cu_seqlens: Tensor

    @classmethod
    def build(cls, text_lens: list[int], image_lens: list[int], device: torch.device | str) -> "Packing":
        lens = torch.tensor([a + b for a, b in zip(text_lens, image_lens, strict=True)])
        offsets = (0, *lens.cumsum(0).tolist())
        many = len(image_lens) > 1
        index = torch.arange(len(image_lens))
        return cls(
            text_lens=tuple(text_lens),
            image_lens=tuple(image_lens),
            offsets=offsets,
            samples=index.repeat_interleave(lens).to(device) if many else None,
            image_samples=index.repeat_interleave(torch.tensor(image_lens)).to(device) if many else None,
            cu_seqlens=torch.tensor(offsets, dtype=torch.int32).to(device),
        )

    def interleave(self, text: list[Tensor], image: Tensor) -> Tensor:
        """Each sample's text tokens, then its image tokens: (T, D)."""
        images = image.split(list(self.image_lens))
        return torch.cat([part for pair in zip(text, images, strict=True) for part in pair])

    def image_rows(self, x: Tensor) -> Tensor:
        """(T, D) -> (N, D): the image tokens alone."""
        if not any(self.text_lens):
            return x
        ends = self.offsets[1:]
        return torch.cat([x[end - n : end] for end, n in zip(ends, self.image_lens, strict=True)])


def spread(values: Tensor, samples: Tensor | None) -> Tensor:
    """(B, ...) to each token's sample, (T, ...); (1, ...), which broadcasts, where `samples` is None."""
    return values if samples is None else values[samples]


def packed_attention(q: Tensor, k: Tensor, v: Tensor, packing: Packing) -> Tensor:
    """Softmax attention inside each sample; q, k, v and the result are (T, H, K)."""
    if q.is_cuda and q.dtype != torch.float32:
        return _varlen(q, k, v, packing)
    lens = {end - start for start, end in pairwise(packing.offsets)}
    if len(lens) == 1:
        return attend(q, k, v, len(packing.image_lens))
    parts = [attend(q[start:end], k[start:end], v[start:end]) for start, end in pairwise(packing.offsets)]
    return torch.cat(parts)


def attend(q: Tensor, k: Tensor, v: Tensor, samples: int = 1, causal: bool = False) -> Tensor:
    """`samples` samples of one length: (S * L, H, K) -> (S * L, H, K); k and v may have fewer heads."""
    dtype = q.dtype
    if q.device.type == "cpu":  # its kernel is faster in float32 even where there is bfloat16
        q, k, v = q.float(), k.float(), v.float()
    q, k, v = (x.unflatten(0, (samples, -1)).transpose(1, 2) for x in (q, k, v))  # (S, H, L, K)
    shared = q.shape[1] != k.shape[1]
    attended = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=shared)
    return attended.transpose(1, 2).flatten(0, 1).to(dtype)


def _varlen(q: Tensor, k: Tensor, v: Tensor, packing: Packing) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    longest = max(end - start for start, end in pairwise(packing.offsets))
    cu = packing.cu_seqlens
    attended = varlen_attn(q, k, v, cu, cu, longest, longest)
    assert isinstance(attended, Tensor), "without return_aux there is one result"
    return attended
