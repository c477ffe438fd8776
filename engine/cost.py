"""The cost model: predicted seconds of device time, measured by the warm-up. Torch-free."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from engine.request import EngineRequest

_NONE: Mapping[int, int] = {}


@dataclass(frozen=True, slots=True)
class LinearCost:
    """base + per_unit * units + per_square * sum of squares, in seconds."""

    base: float
    per_unit: float
    per_square: float = 0.0

    def seconds(self, lengths: Sequence[int]) -> float:
        """Predict one run over sequences (or images) of these lengths."""
        squares = sum(length * length for length in lengths)
        return self.base + self.per_unit * sum(lengths) + self.per_square * squares

    def scaled(self, factor: float) -> "LinearCost":
        return LinearCost(factor * self.base, factor * self.per_unit, factor * self.per_square)


@dataclass(frozen=True, slots=True)
class CostModel:
    """Costs of one transformer pass over a packed row of tokens, of encoding a prompt and of decoding an
    image, all by number of tokens. `pixels_per_token` is the width of an image token in pixels."""

    pass_: LinearCost
    encode: LinearCost
    decode: LinearCost
    pixels_per_token: int

    def image_tokens(self, width: int, height: int) -> int:
        return (width // self.pixels_per_token) * (height // self.pixels_per_token)

    def step_seconds(self, image_tokens: int, text_lens: Sequence[int], guided: int) -> float:
        """Predict one step of `len(text_lens)` samples, of which `guided` need the unconditional pass too."""
        seconds = self.pass_.seconds([image_tokens + length for length in text_lens])
        return seconds + (self.pass_.seconds([image_tokens] * guided) if guided else 0.0)

    def request_seconds(self, request: EngineRequest, steps_done: Mapping[int, int] = _NONE) -> float:
        """Predict the rest of a request that runs alone, one image at a time.

        `steps_done` is by image index; if it is empty, the prompt is still to be encoded. Images in
        `request.skip` are done.
        """
        tokens = self.image_tokens(*request.resolution)
        prompt = [len(request.token_ids)]
        images = [index for index in range(len(request.seeds)) if index not in request.skip]
        schedules = [request.sampling.guidance_schedule[steps_done.get(index, 0) :] for index in images]
        unguided = sum(schedule.count(1) for schedule in schedules)
        guided = sum(map(len, schedules)) - unguided
        seconds = 0.0 if steps_done else self.encode.seconds(prompt)
        seconds += unguided * self.step_seconds(tokens, prompt, 0)
        seconds += guided * self.step_seconds(tokens, prompt, 1)
        return seconds + len(images) * self.decode.seconds([tokens])

    def scaled(self, encode: float, denoise: float, decode: float) -> "CostModel":
        """Multiply the cost of each kind of work by its factor."""
        return replace(
            self,
            pass_=self.pass_.scaled(denoise),
            encode=self.encode.scaled(encode),
            decode=self.decode.scaled(decode),
        )

    def batch_tokens(self, image_tokens: int) -> float:
        """The number of tokens of a batch at which the fixed cost is a twentieth of a step's cost."""
        per_token = self.pass_.per_unit + self.pass_.per_square * image_tokens
        return 19 * self.pass_.base / per_token if per_token > 0 else math.inf


@dataclass(frozen=True, slots=True)
class DeviceSpeed:
    """What work costs on a device. `is_proven` is False if the device has done no work lately that would have
    corrected its cost model."""

    cost: CostModel
    is_proven: bool
