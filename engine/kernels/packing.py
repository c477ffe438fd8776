"""The packed row: the tokens of all samples, one after the other, and where each sample lies in it."""

from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rows:
    """Whose each row of a tensor is, where B samples lie one after the other.

    `offsets` are their B + 1 borders; `samples` (T,) names each row's sample, None where B is 1.
    """

    offsets: tuple[int, ...]
    samples: Tensor | None

    @classmethod
    def build(cls, lens: list[int], device: torch.device | str) -> "Rows":
        offsets = (0, *accumulate(lens))
        if len(lens) == 1:
            return cls(offsets, None)
        # Filled where it is needed: a copy would wait for the device.
        each = [torch.full((length,), index, device=device) for index, length in enumerate(lens)]
        return cls(offsets, torch.cat(each))

    @property
    def lens(self) -> list[int]:
        return [end - start for start, end in pairwise(self.offsets)]


@dataclass(frozen=True, slots=True)
class Packing:
    """Where each sample lies in the packed row: [text_0][image_0][text_1][image_1]...

    `tokens` is all of it, `images` the image tokens alone.
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
        """Each sample's text tokens, then its image tokens: (T, D)."""
        images = image.split(list(self.image_lens))
        return torch.cat([part for pair in zip(text, images, strict=True) for part in pair])

    def image_rows(self, x: Tensor) -> Tensor:
        """(T, ...) -> (N, ...): the image tokens alone."""
        if not any(self.text_lens):
            return x
        ends = self.tokens.offsets[1:]
        return torch.cat([x[end - n : end] for end, n in zip(ends, self.image_lens, strict=True)])


def spread(values: Tensor, samples: Tensor | None) -> Tensor:
    """(B, ...) to each token's sample, (T, ...); (1, ...), which broadcasts, where `samples` is None."""
    return values if samples is None else values[samples]
