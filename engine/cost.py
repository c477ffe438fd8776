"""The cost model: predicted seconds of device time, measured by the warm-up. Torch-free."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, takewhile
from typing import Literal

from engine.request import EngineRequest

# Share of its fixed cost in a unit of work at which a batch stops growing. All members of an encode or decode
# wait until it is done, so its batches are smaller than those of a step.
STEP_SHARE = 1 / 20
TASK_SHARE = 1 / 10

# Work that runs in slices.
TaskKind = Literal["encode", "encode_image", "decode"]
Schedule = tuple[float, ...]
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

    def units_at(self, share: float, length: int = 0) -> float:
        """The total of a batch of this length each at which the base is this share of the seconds."""
        per_unit = self.per_unit + self.per_square * length
        return (1 / share - 1) * self.base / per_unit if per_unit > 0 else math.inf

    def repeated(self, runs: int, sequences: int, length: int) -> float:
        """Predict several runs over so many sequences of this length in total."""
        return runs * self.base + sequences * (self.seconds([length]) - self.base)

    def scaled(self, factor: float) -> "LinearCost":
        return LinearCost(factor * self.base, factor * self.per_unit, factor * self.per_square)


@dataclass(frozen=True, slots=True)
class CostModel:
    """Costs of one transformer pass over a packed row of tokens, of encoding prompts and of decoding images,
    all by number of tokens. `encode_image` is the cost of encoding source images; 0 without an encoder.
    `adapter` is what an adapter adds to the pass over a sample. `pixels_per_token` is the width of an image
    token in pixels.

    `max_batch_size` and `max_batch_tokens` limit a batch where its fixed cost does not, `max_encode_tokens`
    also an encode of prompts, and `max_decode_tokens` a decode and an encode of source images.
    """

    pass_: LinearCost
    encode: LinearCost
    decode: LinearCost
    pixels_per_token: int
    max_batch_size: int
    max_batch_tokens: int
    encode_image: LinearCost = LinearCost(0.0, 0.0)
    adapter: LinearCost = LinearCost(0.0, 0.0)
    max_encode_tokens: int = 32_768
    max_decode_tokens: int = 32_768

    def image_tokens(self, width: int, height: int) -> int:
        return (width // self.pixels_per_token) * (height // self.pixels_per_token)

    def step_seconds(
        self, image_tokens: int, text_lens: Sequence[int], guided: int, adapted: Sequence[int] = ()
    ) -> float:
        """Predict one step of `len(text_lens)` samples, of which `guided` need the unconditional pass too.

        `adapted` has the tokens of the sample for each adapter of each sample.
        """
        seconds = self.pass_.seconds([image_tokens + length for length in text_lens])
        seconds += len(adapted) * self.adapter.base + self.adapter.per_unit * sum(adapted)
        return seconds + (self.pass_.seconds([image_tokens] * guided) if guided else 0.0)

    def request_seconds(self, request: EngineRequest, steps_done: Mapping[int, int] = _NONE) -> float:
        """Predict the rest of a request that runs alone, its images in batches.

        `steps_done` is by image index; if it is empty, prompt and source are still to be encoded. Images in
        `request.skip` are done.
        """
        schedule = request.sampling.guidance_schedule[request.first_step :]
        images = [index for index in range(len(request.seeds)) if index not in request.skip]
        left = [schedule[steps_done.get(index, 0) :] for index in images]
        tokens, prompt = self.image_tokens(*request.resolution), len(request.token_ids)
        per_step = fitting([tokens + prompt] * self.max_batch_size, self.step_tokens(tokens))
        encode = 0.0 if steps_done else self._encode_seconds(request)
        steps = self._steps_seconds([each for each in left if each], per_step, tokens, prompt)
        first, end = request.first_step, request.sampling.num_inference_steps
        adapted = sum(adapter_steps(request, first + steps_done.get(index, 0), end) for index in images)
        steps += self.adapter.repeated(adapted, adapted, tokens + prompt)
        return encode + steps + self._decode_seconds(len(left), per_step, tokens)

    def _encode_seconds(self, request: EngineRequest) -> float:
        """Predict the encodes of a request's prompt and source."""
        tokens = [self.image_tokens(*request.resolution)]
        source = self.encode_image.seconds(tokens) if request.encodes_source else 0.0
        return self.encode.seconds([len(request.token_ids)]) + source

    def _steps_seconds(self, left: list[Schedule], per_step: int, tokens: int, prompt: int) -> float:
        """Predict the steps of images, given the guidance schedule that each has left."""
        guided = [len(schedule) - schedule.count(1) for schedule in left]
        conditional = _passes([len(schedule) for schedule in left], per_step)
        seconds = self.pass_.repeated(conditional, sum(map(len, left)), tokens + prompt)
        return seconds + self.pass_.repeated(_passes(guided, per_step), sum(guided), tokens)

    def _decode_seconds(self, images: int, per_step: int, tokens: int) -> float:
        """Predict the decodes of images, `per_step` of which finish together."""
        per_decode = fitting([tokens] * per_step, self.decode_tokens)
        full, rest = divmod(images, per_step)
        decodes = full * math.ceil(per_step / per_decode) + math.ceil(rest / per_decode)
        return self.decode.repeated(decodes, images, tokens)

    def of(self, kind: TaskKind) -> LinearCost:
        """The cost of encodes or decodes."""
        return {"encode": self.encode, "encode_image": self.encode_image, "decode": self.decode}[kind]

    def scaled(self, encode: float, denoise: float, decode: float, encode_image: float = 1.0) -> "CostModel":
        """Multiply the cost of each kind of work by its factor."""
        return replace(
            self,
            pass_=self.pass_.scaled(denoise),
            adapter=self.adapter.scaled(denoise),
            encode=self.encode.scaled(encode),
            decode=self.decode.scaled(decode),
            encode_image=self.encode_image.scaled(encode_image),
        )

    def step_tokens(self, image_tokens: int) -> float:
        """The token budget of a step of images of this size."""
        return min(self.pass_.units_at(STEP_SHARE, image_tokens), self.max_batch_tokens)

    @property
    def encode_tokens(self) -> float:
        """The token budget of an encode of several prompts."""
        return min(self.encode.units_at(TASK_SHARE), self.max_batch_tokens, self.max_encode_tokens)

    @property
    def encode_image_tokens(self) -> float:
        """The token budget of an encode of several source images."""
        return min(self.encode_image.units_at(TASK_SHARE), self.max_batch_tokens, self.max_decode_tokens)

    @property
    def decode_tokens(self) -> float:
        """The token budget of a decode of several images."""
        return min(self.decode.units_at(TASK_SHARE), self.max_batch_tokens, self.max_decode_tokens)


@dataclass(frozen=True, slots=True)
class DeviceSpeed:
    """What work costs on a device. `is_proven` is False if the device has done no work lately that would have
    corrected its cost model."""

    cost: CostModel
    is_proven: bool


def adapter_steps(request: EngineRequest, first: int, end: int) -> int:
    """In how many steps from `first` to `end` adapters are applied, each adapter counted separately."""
    return sum(max(0, min(end, use.end_step) - max(first, use.first_step)) for use in request.adapters)


def fitting(lengths: Iterable[int], budget: float) -> int:
    """How many of the first sequences fit in a token budget; at least 1."""
    return max(1, sum(1 for _ in takewhile(lambda total: total <= budget, accumulate(lengths))))


def _passes(steps: list[int], per_step: int) -> int:
    """Passes for images with so many steps left: the first `per_step` run together, then the next."""
    return sum(max(steps[first : first + per_step]) for first in range(0, len(steps), per_step))
