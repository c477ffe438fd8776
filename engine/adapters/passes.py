"""What the adapters of requests change in the passes of a step."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from engine.adapters.adapter import Adapter
from engine.memory.bounds import MODULATIONS
from engine.models.dit import DiT, Modulation
from engine.models.low_rank import Applied, BatchUpdates
from engine.request import AdapterUse

# The adapters of a request, in its order.
Adapters = tuple[tuple[AdapterUse, Adapter], ...]
# A sample: its adapters, and the index of its next step.
Progress = tuple[Adapters, int]


class Held(Protocol):
    """Adapters in memory by digest."""

    def __getitem__(self, digest: str, /) -> Adapter: ...


class AdapterPasses:
    """The updates of both passes, and the modulations with them.

    If one transformer runs both passes, its updates apply to both. With `imitation`, an adapter that makes
    the conditional transformer imitate the unconditional one, the unconditional pass applies that and the
    updates of the unconditional transformer.
    """

    def __init__(
        self, conditional: DiT, unconditional: DiT, held: Held, imitation: Adapter | None = None
    ) -> None:
        self._conditional_dit, self._unconditional_dit = conditional, unconditional
        self._held = held
        self._imitation = imitation
        self._shared_modulation = lru_cache(MODULATIONS)(self._modulate_alike)

    def find(self, uses: Sequence[AdapterUse]) -> Adapters:
        """The adapters that a request uses, which are in memory."""
        return tuple((use, self._held[use.digest]) for use in uses)

    def conditional(self, samples: Sequence[Progress]) -> BatchUpdates | None:
        """The updates of the conditional pass over these samples."""
        return BatchUpdates.of([self._conditional(*sample) for sample in samples])

    def unconditional(self, samples: Sequence[Progress]) -> BatchUpdates | None:
        """The updates of the unconditional pass over these samples."""
        return BatchUpdates.of([self._unconditional(*sample) for sample in samples])

    def modulations(
        self, adapters: Adapters, times: Tensor, is_guided: bool
    ) -> tuple[Modulation, Modulation | None]:
        """The modulation of each pass at the start of every step; times (S + 1,)."""
        conditional = self._modulation(self._conditional_dit, times, adapters, self._conditional)
        if not is_guided:
            return conditional, None
        return conditional, self._modulation(self._unconditional_dit, times, adapters, self._unconditional)

    def _conditional(self, adapters: Adapters, step: int) -> Applied:
        return tuple((each.conditional, scale) for each, scale in _active(adapters, step) if each.conditional)

    def _unconditional(self, adapters: Adapters, step: int) -> Applied:
        active = _active(adapters, step)
        own = tuple((each.unconditional, scale) for each, scale in active if each.unconditional)
        if self._imitation is not None:
            return ((self._imitation.conditional or self._imitation.unconditional, 1.0), *own)
        is_shared = self._unconditional_dit is self._conditional_dit
        return (*self._conditional(adapters, step), *own) if is_shared else own

    def _modulation(
        self, dit: DiT, times: Tensor, adapters: Adapters, applied: Callable[[Adapters, int], Applied]
    ) -> Modulation:
        """Shared by the requests whose adapters do not change it."""
        starts = tuple(times[:-1].tolist())
        imitation = _of_modulation(applied((), 0))
        changes = [_of_modulation(applied(adapters, step)) for step in range(len(starts))]
        if all(len(each) == len(imitation) for each in changes):
            return self._shared_modulation(dit, starts, bool(imitation))
        return _modulate(dit, starts, BatchUpdates.of(changes))

    def _modulate_alike(self, dit: DiT, starts: tuple[float, ...], imitates: bool) -> Modulation:
        imitation = _of_modulation(self._unconditional((), 0)) if imitates else ()
        return _modulate(dit, starts, BatchUpdates.of([imitation] * len(starts)))


def _active(adapters: Adapters, step: int) -> Iterator[tuple[Adapter, float]]:
    for use, adapter in adapters:
        if use.scale and use.first_step <= step < use.end_step:
            yield adapter, use.scale


def _of_modulation(applied: Applied) -> Applied:
    """Those that change the modulation."""
    return tuple((blocks, scale) for blocks, scale in applied if any("adaln" in block for block in blocks))


@torch.inference_mode()
def _modulate(dit: DiT, starts: tuple[float, ...], updates: BatchUpdates | None) -> Modulation:
    return dit.modulate(torch.tensor(starts, device=dit.device), updates)
