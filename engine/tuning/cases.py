"""Cases: the operations of a loaded model by shape, each with its candidates."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from engine.kernels import attention, feed_forward, linear, low_rank, norm, rotary
from engine.kernels.attention import Attend, Length
from engine.kernels.candidates import Candidate, Machine
from engine.kernels.feed_forward import FeedForward
from engine.kernels.low_rank import Factors, LowRank, Masks, Span
from engine.kernels.norm import RMSNorm
from engine.kernels.rotary import NormRotary
from engine.quantized import nf4_product
from engine.quantized.nf4 import NF4Linear
from engine.tuning.race import Run

# Every operation with all its candidates, on whatever machine.
OPERATIONS: dict[str, tuple[Candidate, ...]] = {
    "attention": tuple(dict.fromkeys(each for row in attention.CANDIDATES.values() for each in row)),
    "causal_attention": attention.CAUSAL_CANDIDATES,
    "feed_forward": feed_forward.CANDIDATES,
    "linear": linear.CANDIDATES,
    "low_rank": low_rank.CANDIDATES,
    "nf4_linear": nf4_product.CANDIDATES,
    "norm": norm.CANDIDATES,
    "rotary": rotary.CANDIDATES,
}
# Keys of the sample on which each length class of attention is measured.
_KEYS: dict[Length, int] = {"tiny": 80, "short": 310, "medium": 1078, "long": 2304}
# Samples with different adapters, and their rank.
_ADAPTED, _RANK = 4, 16


@dataclass(frozen=True, slots=True)
class Shapes:
    """Numbers of tokens in one part of the model: of typical samples, and of the longest sample."""

    rows: tuple[int, ...]
    longest: int


@dataclass(frozen=True, slots=True)
class Case:
    """An operation at one shape: `key` is "operation.shape". The first candidate is the default.

    `trials` returns what is timed, one run per typical size; `apply` makes the model use the candidate.
    """

    key: str
    candidates: tuple[Candidate, ...]
    trials: Callable[[Candidate], list[Run]]
    apply: Callable[[Candidate], None]

    @property
    def operation(self) -> str:
        return self.key.partition(".")[0]

    @property
    def names(self) -> list[str]:
        return [each.name for each in self.candidates]

    def candidate(self, name: str) -> Candidate:
        return self.candidates[self.names.index(name)]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a layer is in the model, and the shapes of the part. Does not keep a layer that is replaced."""

    parent: nn.Module
    name: str
    shapes: Shapes

    @property
    def layer(self) -> nn.Module:
        return self.parent.get_submodule(self.name)


def find_cases(parts: Iterable[tuple[nn.Module, Shapes]], machine: Machine) -> list[Case]:
    """The cases of all parts that have more than one candidate on this machine; equal shapes share a case."""
    places: dict[str, list[_Place]] = {}
    seen: set[int] = set()
    for part, shapes in parts:
        for place in _places(part, shapes):
            if id(place.layer) not in seen:
                seen.add(id(place.layer))
                for key in _keys(place):
                    places.setdefault(key, []).append(place)
    cases = [_case(key, each, machine) for key, each in sorted(places.items())]
    return [case for case in cases if len(case.candidates) > 1]


def _places(module: nn.Module, shapes: Shapes) -> Iterator[_Place]:
    for name, child in module.named_children():
        yield _Place(module, name, shapes)
        if not _is_plain_feed_forward(child):
            yield from _places(child, shapes)


def _is_plain_feed_forward(layer: nn.Module) -> bool:
    """Whether neither of its matrices is quantised."""
    return isinstance(layer, FeedForward) and type(layer.w13) is type(layer.w2) is nn.Linear


def _keys(place: _Place) -> Iterator[str]:
    layer = place.layer
    if type(layer) is nn.Linear:
        yield f"linear.{layer.in_features}x{layer.out_features}"
    elif isinstance(layer, NF4Linear) and not layer.is_widened:
        yield f"nf4_linear.{layer.in_features}x{layer.out_features}"
    elif isinstance(layer, FeedForward) and _is_plain_feed_forward(layer):
        yield f"feed_forward.{layer.w2.out_features}x{layer.w2.in_features}"
    elif isinstance(layer, RMSNorm):
        yield f"norm.{len(layer.weight)}"
    elif isinstance(layer, NormRotary):
        yield f"rotary.{layer.head_dim}"
    elif isinstance(layer, LowRank):
        yield f"low_rank.{layer.width}"
    elif isinstance(layer, Attend):
        lengths = dict.fromkeys(map(attention.length_class, range(1, place.shapes.longest + 1)))
        operation = "causal_attention" if layer.causal else "attention"
        yield from (f"{operation}.{layer.head_dim}.{length}" for length in lengths)


def _case(key: str, places: list[_Place], machine: Machine) -> Case:
    first = places[0]
    rows, layer, device = first.shapes.rows, first.layer, _device(first)
    random = partial(_random, machine.dtype, device)
    kernel: Callable[[list[_Place], Candidate], None] = _set_kernel
    if isinstance(layer, Attend):
        length: Length = key.rpartition(".")[2]  # type: ignore[assignment]
        keys = min(_KEYS[length], first.shapes.longest)
        candidates, trials = layer.candidates(length), partial(_attention_runs, layer, keys, random)
        kernel = partial(_set_attention, length)
    elif isinstance(layer, LowRank):
        candidates, trials = low_rank.CANDIDATES, partial(_low_rank_runs, layer, rows, random)
    elif isinstance(layer, RMSNorm):
        candidates, trials = norm.CANDIDATES, partial(_norm_runs, layer, rows, random)
    elif isinstance(layer, NormRotary):
        candidates, trials = rotary.CANDIDATES, partial(_rotary_runs, layer, rows, random)
    else:
        candidates = _replacements(layer)
        trials, kernel = partial(_layer_runs, layer, rows, random), _replace
    correct = tuple(each for each in candidates if each.is_correct(machine))
    return Case(key, correct, trials, partial(kernel, places))


def _replacements(layer: nn.Module) -> tuple[Candidate, ...]:
    if isinstance(layer, FeedForward):
        return layer.candidates()
    return nf4_product.CANDIDATES if isinstance(layer, NF4Linear) else linear.CANDIDATES


def _device(place: _Place) -> torch.device:
    weights = [*place.parent.parameters(), *place.layer.parameters()]
    return weights[0].device


def _random(dtype: torch.dtype, device: torch.device, *shape: int) -> Tensor:
    return torch.randn(shape, device=device).to(dtype)


_Random = Callable[..., Tensor]


def _attention_runs(layer: Attend, keys: int, random: _Random, candidate: Candidate) -> list[Run]:
    q = random(keys, layer.heads, layer.head_dim)
    k, v = (random(keys, layer.groups, layer.head_dim) for _ in range(2))
    return [partial(candidate.run, q, k, v, 1)]


def _norm_runs(layer: RMSNorm, rows: tuple[int, ...], random: _Random, candidate: Candidate) -> list[Run]:
    size = len(layer.weight)
    return [partial(candidate.run, random(n, size), random(1, size), layer.eps) for n in rows]


def _rotary_runs(
    layer: NormRotary, rows: tuple[int, ...], random: _Random, candidate: Candidate
) -> list[Run]:
    heads, size = layer.heads, layer.head_dim
    inputs = ((random(n, heads, size), random(size), layer.eps, random(2, n, 1, size // 2)) for n in rows)
    return [partial(candidate.run, x, weight, eps, angles.float()) for x, weight, eps, angles in inputs]


def _low_rank_runs(layer: LowRank, rows: tuple[int, ...], random: _Random, candidate: Candidate) -> list[Run]:
    width = layer.width
    factors = [Factors(random(_RANK, width), random(1, width, _RANK)) for _ in range(_ADAPTED)]
    runs: list[Run] = []
    for n in rows:
        spans = [Span(i * n, (i + 1) * n, each, 1.0) for i, each in enumerate(factors)]
        y, x = (random(_ADAPTED * n, width) for _ in range(2))
        runs.append(partial(candidate.run, [y], x, spans, Masks()))
    return runs


def _layer_runs(layer: Any, rows: tuple[int, ...], random: _Random, candidate: Candidate) -> list[Run]:
    width = layer.w13.in_features if isinstance(layer, FeedForward) else layer.in_features
    replaced = candidate.run(layer)
    return [partial(replaced, random(n, width)) for n in rows]


def _set_attention(length: Length, places: list[_Place], candidate: Candidate) -> None:
    for place in places:
        assert isinstance(place.layer, Attend)
        place.layer.kernels[length] = candidate.run


def _set_kernel(places: list[_Place], candidate: Candidate) -> None:
    for place in places:
        assert isinstance(place.layer, RMSNorm | NormRotary | LowRank)
        place.layer.kernel = candidate.run


def _replace(places: list[_Place], candidate: Candidate) -> None:
    for place in places:
        setattr(place.parent, place.name, candidate.run(place.layer))
