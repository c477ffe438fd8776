"""The packed row: the tokens of all samples, one after the other, and where each sample lies in it."""

from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rows:
    """Which sample each row of a tensor belongs to, where B samples lie one after the other.

    `offsets` are their B + 1 boundaries; `samples` (T,) holds each row's sample index, None if B is 1.
    """

    offsets: tuple[int, ...]
    samples: Tensor | None

    @classmethod
    def build(cls, lens: list[int], device: torch.device | str) -> "Rows":
        offsets = (0, *accumulate(lens))
        if len(lens) == 1:
            return cls(offsets, None)
        # Built on the device: a copy would synchronise with it.
        each = [torch.full((length,), index, device=device) for index, length in enumerate(lens)]
        return cls(offsets, torch.cat(each))

    @property
    def lens(self) -> list[int]:
        return [end - start for start, end in pairwise(self.offsets)]


@dataclass(frozen=True, slots=True)
class Packing:
    """Where each sample lies in the packed row: [text_0][image_0][text_1][image_1]...

    `tokens` covers the whole row, `images` the image tokens alone.
    """

    text_lens: tuple[int, ...]
    image_lens: tuple[int, ...]
    tokens: Rows
    images: Rows

    @classmethod
    def build(cls, text_lens: list[int], image_lens: list[int], device: torch.device | str) -> "Packing":
        lens = [text + image for text, image in zip(text_lens, image_lens, strict=True)]
        tokens, images = Rows.build(lens, device), Rows.build(image_lens, device)
        return cls(tuple(text_lens), tuple(image_lens), tokens, images)

    def interleave(self, text: list[Tensor], image: Tensor) -> Tensor:
        """Concatenate each sample's text tokens and image tokens: (T, D)."""
        images = image.split(list(self.image_lens))
        return torch.cat([part for pair in zip(text, images, strict=True) for part in pair])

    def image_rows(self, x: Tensor) -> Tensor:
        """Select the image tokens: (T, ...) -> (N, ...)."""
        if not any(self.text_lens):
            return x
        ends = self.tokens.offsets[1:]
        return torch.cat([x[end - n : end] for end, n in zip(ends, self.image_lens, strict=True)])


def spread(values: Tensor, samples: Tensor | None) -> Tensor:
    """Expand per-sample values (B, ...) to tokens, (T, ...); if `samples` is None, (1, ...) broadcasts."""
    return values if samples is None else values[samples]
