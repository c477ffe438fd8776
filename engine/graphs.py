"""CUDA graphs: a transformer's pass, recorded once for each shape and launched as one from then on."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from engine.kernels.packing import Packing
from engine.models.dit import DiT, Modulation

KEPT = 32  # recordings of a transformer: prompts, sizes and batches in turn
MAX_TOKENS = 1024  # of a pass that is recorded


class Recording(Protocol):
    """Kernels with the addresses they read and write."""

    def replay(self) -> Tensor:
        """Run them again; the result is overwritten by the next replay."""
        ...


Recorder = Callable[[Callable[[], Tensor]], Recording]
Shape = tuple[tuple[int, ...], tuple[int, ...]]
Pass = Callable[[Tensor, list[Tensor], Modulation, Tensor, Packing], Tensor]  # as `DiT.forward`


class CudaGraph:
    """What `run` launches on the device; it must have run before, so that nothing is left to prepare.

    Recordings of one `pool` share the memory between their inputs and results: never replay two at once.
    """

    def __init__(self, run: Callable[[], Tensor], pool: Any) -> None:
        self._graph = torch.cuda.CUDAGraph()
        # The other transformer may run in a thread of its own, on a device of its own.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._result = run()

    def replay(self) -> Tensor:
        self._graph.replay()
        return self._result


def cuda_recorder(device: torch.device | str) -> Recorder:
    """Records on the device, all into one pool of memory."""
    with torch.cuda.device(device):
        pool = torch.cuda.graph_pool_handle()

    def record(run: Callable[[], Tensor]) -> Recording:
        with torch.cuda.device(device):
            return CudaGraph(run, pool)

    return record


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A recording, and what it reads: tensors of its own, and the packing, the same for all of its shape."""

    inputs: tuple[Tensor, ...]
    packing: Packing
    recording: Recording

    def replay(self, inputs: tuple[Tensor, ...]) -> Tensor:
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        return self.recording.replay().clone()


class RecordedPass:
    """A transformer's pass, called as the transformer is.

    The first pass of a shape (lengths of prompts and images) runs as it is, the second is recorded: all
    steps of a request have one. Larger passes take the device longer than the host needs to launch them.
    """

    def __init__(self, dit: DiT, record: Recorder) -> None:
        self._dit, self._record = dit, record
        self._recorded: OrderedDict[Shape, _Recorded | None] = OrderedDict()

    def __call__(
        self, latents: Tensor, text: list[Tensor], modulation: Modulation, rotary: Tensor, packing: Packing
    ) -> Tensor:
        """As `DiT.forward`."""
        shape = packing.text_lens, packing.image_lens
        if packing.tokens.offsets[-1] > MAX_TOKENS or not self._seen(shape):
            return self._dit(latents, text, modulation, rotary, packing)
        inputs = (latents, modulation.blocks, modulation.final, rotary, *text)
        recorded = self._recorded[shape] = self._recorded[shape] or self._new(inputs, packing)
        return recorded.replay(inputs)

    def _seen(self, shape: Shape) -> bool:
        """Whether it came before; it counts as the latest from now on, and the oldest is forgotten."""
        seen = shape in self._recorded
        self._recorded.setdefault(shape, None)
        self._recorded.move_to_end(shape)
        if len(self._recorded) > KEPT:
            self._recorded.popitem(last=False)
        return seen

    def _new(self, inputs: tuple[Tensor, ...], packing: Packing) -> _Recorded:
        own = tuple(given.clone() for given in inputs)
        latents, blocks, final, rotary, *text = own
        run = partial(self._dit, latents, text, Modulation(blocks, final), rotary, packing)
        return _Recorded(own, packing, self._record(run))
