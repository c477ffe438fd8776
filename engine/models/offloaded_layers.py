"""Layers whose weights stay in the memory of the host, and are copied to the device while those before
run."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from engine.memory.bounds import LAYERS_IN_FLIGHT

Run = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Fetched:
    """The weights of a layer on the device by name, once `is_done`; `wait` makes work queued later wait for
    it."""

    weights: dict[str, Tensor]
    is_done: Callable[[], bool]
    wait: Callable[[], object]


class Fetch(Protocol):
    """Starts to copy the weights of a layer to the device."""

    def __call__(self, layer: nn.Module) -> Fetched: ...


class CudaFetch:
    """Copies on a stream beside the one that computes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def __call__(self, layer: nn.Module) -> Fetched:
        computing = torch.cuda.current_stream(self._device)
        # The memory may be that of an earlier layer, which queued work still reads.
        self._stream.wait_stream(computing)
        with torch.cuda.stream(self._stream):
            weights = {
                name: weight.to(self._device, non_blocking=True) for name, weight in layer.named_parameters()
            }
            copied = self._stream.record_event()
        return Fetched(weights, copied.query, lambda: computing.wait_event(copied))


class OffloadedLayers(nn.Module):
    """Iterates over the layers as functions to call, each before the next one is taken.

    Without `fetch`, the layers themselves, where the host is the device. Iterations are independent.
    """

    def __init__(self, layers: Iterable[nn.Module], fetch: Fetch | None) -> None:
        super().__init__()
        self.host = nn.ModuleList(layers)
        self._fetch = fetch
        self._next: Fetched | None = None

    @property
    def is_fetching(self) -> bool:
        """Whether the layer that runs next is being copied."""
        return self._next is not None and not self._next.is_done()

    def __iter__(self) -> Iterator[Run]:
        return iter(self.host) if self._fetch is None else self._copies(self._fetch)

    def _copies(self, fetch: Fetch) -> Iterator[Run]:
        waiting = iter(self.host)
        fetched = deque(fetch(layer) for layer in islice(waiting, LAYERS_IN_FLIGHT))
        for layer in self.host:
            present = fetched.popleft()
            self._next = fetched[0] if fetched else None
            present.wait()
            yield partial(_call, layer, present.weights)
            present.weights.clear()  # even if the caller still has the function
            fetched.extend(fetch(each) for each in islice(waiting, 1))


def _call(layer: nn.Module, weights: dict[str, Tensor], *inputs: Any) -> Any:
    return functional_call(layer, weights, inputs)


def _pin(layers: Iterable[nn.Module]) -> None:
    """Pin the weights, without which a copy to a GPU is synchronous."""
    for layer in layers:
        for weight in layer.parameters():
            weight.data = weight.data.pin_memory()


def offload(layers: nn.ModuleList, device: torch.device) -> OffloadedLayers:
    """The layers, which are in the memory of the host, to run on a device."""
    if device.type != "cuda":
        return OffloadedLayers(layers, None)
    _pin(layers)
    return OffloadedLayers(layers, CudaFetch(device))
