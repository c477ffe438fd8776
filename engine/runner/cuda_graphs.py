"""CUDA graphs: records a transformer's forward pass once per shape and replays it from then on."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Protocol

import torch
from torch import Tensor

from engine.kernels.packing import Packing
from engine.memory.bounds import GRAPH_SHAPES, GRAPH_TOKENS
from engine.models.dit import DiT, Modulation
from engine.models.low_rank import BatchUpdates


class Recording(Protocol):
    """Recorded kernels with the addresses they read and write."""

    def replay(self) -> Tensor:
        """Run the kernels again. The next replay overwrites the result."""
        ...


Recorder = Callable[[Callable[[], Tensor]], Recording]
Shape = tuple[tuple[int, ...], tuple[int, ...]]
# As `DiT.forward`.
Pass = Callable[[Tensor, list[Tensor], Modulation, Tensor, Packing, BatchUpdates | None], Tensor]


class CudaGraph:
    """Captures what `run` launches. Call `run` once before, so that nothing is left to initialise.

    Recordings in one `pool` share memory for intermediate results: never replay two at once.
    """

    def __init__(self, run: Callable[[], Tensor], pool: Any) -> None:
        self._graph = torch.cuda.CUDAGraph()
        # The other transformer may run in another thread, on another device.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._result = run()

    def replay(self) -> Tensor:
        self._graph.replay()
        return self._result


def cuda_recorder(device: torch.device | str) -> Recorder:
    """Returns a recorder for the device; its recordings share one memory pool."""
    with torch.cuda.device(device):
        pool = torch.cuda.graph_pool_handle()

    def record(run: Callable[[], Tensor]) -> Recording:
        with torch.cuda.device(device):
            return CudaGraph(run, pool)

    return record


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A recording, the input tensors it reads, and the packing, which depends on the shape alone."""

    inputs: tuple[Tensor, ...]
    packing: Packing
    recording: Recording

    def replay(self, inputs: tuple[Tensor, ...]) -> Tensor:
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        return self.recording.replay().clone()


@dataclass(slots=True)
class _Slot:
    """What is known of a shape: whether a pass of it has run, and its recording."""

    is_seen: bool = False
    recorded: _Recorded | None = None


class RecordedPass:
    """A transformer's forward pass with the signature of `DiT.forward`.

    The first pass of a shape (lengths of prompts and images) runs as usual, the second is recorded, since all
    steps of a request share a shape. For larger passes the device, not the host, is the bottleneck.
    """

    def __init__(self, dit: DiT, record: Recorder) -> None:
        self._dit, self._record = dit, record
        self._slot: Callable[[Shape], _Slot] = lru_cache(GRAPH_SHAPES)(lambda _: _Slot())

    def __call__(
        self,
        latents: Tensor,
        text: list[Tensor],
        modulation: Modulation,
        rotary: Tensor,
        packing: Packing,
        updates: BatchUpdates | None = None,
    ) -> Tensor:
        """See `DiT.forward`. Passes with updates are not recorded."""
        if updates or packing.tokens.offsets[-1] > GRAPH_TOKENS:
            return self._dit(latents, text, modulation, rotary, packing, updates)
        slot = self._slot((packing.text_lens, packing.image_lens))
        if not slot.is_seen:
            slot.is_seen = True
            return self._dit(latents, text, modulation, rotary, packing)
        inputs = (latents, modulation.blocks, modulation.final, rotary, *text)
        slot.recorded = slot.recorded or self._new(inputs, packing)
        return slot.recorded.replay(inputs)

    def _new(self, inputs: tuple[Tensor, ...], packing: Packing) -> _Recorded:
        own = tuple(given.clone() for given in inputs)
        latents, blocks, final, rotary, *text = own
        run = partial(self._dit, latents, text, Modulation(blocks, final), rotary, packing)
        return _Recorded(own, packing, self._record(run))
