"""Predicted seconds of device work, from what the warm-up measured. Torch-free."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LinearCost:
    """base + per_unit * units + per_square * sum of squares, in seconds."""

    base: float
    per_unit: float
    per_square: float = 0.0

    def seconds(self, lengths: Sequence[int]) -> float:
        """For one run over sequences (or images) of these lengths."""
        squares = sum(length * length for length in lengths)
        return self.base + self.per_unit * sum(lengths) + self.per_square * squares


@dataclass(frozen=True, slots=True)
class CostModel:
    """`pass_` is one transformer over a packed row of tokens; `encode` a prompt of tokens;
    `decode` an image of tokens. `pixels_per_token` is of one side."""

    pass_: LinearCost
    encode: LinearCost
    decode: LinearCost
    pixels_per_token: int

    def image_tokens(self, width: int, height: int) -> int:
        return (width // self.pixels_per_token) * (height // self.pixels_per_token)

    def step_seconds(self, image_tokens: int, text_lens: Sequence[int], guided: int) -> float:
        """One denoising step of `len(text_lens)` samples, `guided` of which need both passes."""
        seconds = self.pass_.seconds([image_tokens + length for length in text_lens])
        return seconds + (self.pass_.seconds([image_tokens] * guided) if guided else 0.0)

    def request_seconds(
        self, width: int, height: int, num_tokens: int, guidance_schedule: Sequence[float], num_images: int
    ) -> float:
        """A whole request, run alone."""
        tokens = self.image_tokens(width, height)
        guided = sum(scale != 1 for scale in guidance_schedule)
        steps = (len(guidance_schedule) - guided) * self.step_seconds(tokens, [num_tokens], 0)
        steps += guided * self.step_seconds(tokens, [num_tokens], 1)
        return self.encode.seconds([num_tokens]) + num_images * (steps + self.decode.seconds([tokens]))

    def batch_limit(self, image_tokens: int, max_batch_size: int) -> int:
        """The batch at which the fixed cost of a step is spread thin: under a twentieth of the whole."""
        per_sample = self.pass_.seconds([image_tokens]) - self.pass_.base
        if per_sample <= 0:
            return max_batch_size
        return max(1, min(max_batch_size, round(19 * self.pass_.base / per_sample)))
