"""An adapter in memory."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.adapters.adapter_keys import PIECES, Part, matrix_shape
from engine.kernels.low_rank import Factors
from engine.models.dit import DiT
from engine.models.low_rank import Block, Blocks


@dataclass(frozen=True, eq=False, slots=True)
class Adapter:
    """The updates of both transformers; empty for one that the adapter does not change."""

    conditional: Blocks
    unconditional: Blocks

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors())

    def tensors(self) -> Iterator[Tensor]:
        for block in (*self.conditional, *self.unconditional):
            for factors in block.values():
                yield from (factors.down, factors.up)

    def map(self, change: Callable[[Part, Tensor], Tensor]) -> "Adapter":
        """The adapter with every tensor replaced."""

        def each(part: Part, block: Block) -> Block:
            return {
                name: Factors(change(part, factors.down), change(part, factors.up))
                for name, factors in block.items()
            }

        return Adapter(
            tuple(each("conditional", block) for block in self.conditional),
            tuple(each("unconditional", block) for block in self.unconditional),
        )


def pinned(adapter: Adapter) -> Adapter:
    """A copy in memory that CUDA devices read directly."""
    return adapter.map(lambda _, tensor: tensor.pin_memory())


def sent(adapter: Adapter, devices: Mapping[Part, torch.device]) -> Adapter:
    """A copy on the devices of the transformers, complete when this returns. May run beside the steps: only
    this thread waits for the copies."""
    sides = {device: torch.cuda.Stream(device) for device in devices.values()}

    def send(part: Part, tensor: Tensor) -> Tensor:
        device = devices[part]
        with torch.cuda.stream(sides[device]):
            copied = tensor.to(device, non_blocking=True)
        # Else the memory could be reused while a step still reads it.
        copied.record_stream(torch.cuda.default_stream(device))
        return copied

    copied = adapter.map(send)
    for side in sides.values():
        side.synchronize()
    return copied


def blank_adapter(dit: DiT, rank: int) -> Adapter:
    """An adapter that changes every matrix of a transformer by zero. All its blocks share their memory."""
    block: Block = {}
    for matrix, pieces in PIECES.items():
        rows, columns = matrix_shape(matrix, dit.config)
        down = torch.zeros(pieces * rank, columns, dtype=dit.dtype, device=dit.device)
        up = torch.zeros(pieces, rows // pieces, rank, dtype=dit.dtype, device=dit.device)
        block = {**block, matrix: Factors(down, up)}
    return Adapter((block,) * dit.config.num_layers, ())
