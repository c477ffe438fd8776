"""Reads the header of a LoRA adapter and checks it against a transformer. Torch-free."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import groupby
from pathlib import Path
from typing import Literal

from engine.adapters.adapter_header import AdapterError as AdapterError
from engine.adapters.adapter_header import Header, read_header
from engine.adapters.adapter_keys import Format, Key, Leaf, Part, Place, parse, problem, shape
from engine.adapters.alphas import DeclaredAlphas
from engine.config.part_configs import DiTConfig

Configs = Mapping[Part, DiTConfig]
_DTYPES = ("F16", "BF16", "F32")
MAX_RANK = 1024


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """What an adapter is. `rank` is its highest, `modules` the number of modules that it changes, `bytes` the
    size of its file, `target` the transformer that it belongs to."""

    format: Format
    rank: int
    modules: int
    bytes: int
    target: Literal["conditional", "unconditional", "both"]
    trigger_words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Update:
    """The keys of an update's factors, `down` (rank, columns) and `up` (rows, rank).

    `alpha` is the key of a scalar; without it, `declared_scale` multiplies the product.
    """

    down: str
    up: str
    alpha: str | None
    rank: int
    declared_scale: float

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.down, self.up) if self.alpha is None else (self.down, self.up, self.alpha)


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """A checked adapter: what it is, and the update of each place."""

    info: AdapterInfo
    updates: Mapping[Place, Update]


def read_adapter(
    path: Path, config: DiTConfig, ignore: Sequence[str] = (), unconditional: DiTConfig | None = None
) -> AdapterInfo:
    """Check the header of a safetensors file against the transformers that it changes, and describe it.

    `unconditional` is the config of the unconditional transformer, if that differs. Keys that match one of
    the `ignore` patterns (such as `*.dora_scale`) are not read. Raises AdapterError naming file and key.
    """
    return check_adapter(read_header(path), both_configs(config, unconditional), ignore).info


def both_configs(config: DiTConfig, unconditional: DiTConfig | None) -> Configs:
    """The config of each transformer. They are equal unless the second is given."""
    return {"conditional": config, "unconditional": unconditional or config}


def check_adapter(header: Header, configs: Configs, ignore: Sequence[str]) -> AdapterFile:
    """As `read_adapter`, of a header that was read, with the keys of each update."""
    keys = dict(_parsed(header, ignore))
    alphas = DeclaredAlphas.read(header)
    updates = {place: _update(header, found, alphas) for place, found in _places(header, keys)}
    if not updates:
        raise AdapterError(f"{header.path}: no key of a LoRA adapter")
    for place, update in updates.items():
        _check_shapes(header, update, place, configs[place.part])
    _check_pieces(header, updates)
    return AdapterFile(_describe(header, keys, updates), updates)


def _parsed(header: Header, ignore: Sequence[str]) -> Iterator[tuple[str, Key]]:
    for key in sorted(header.tensors):
        if any(fnmatchcase(key, pattern) for pattern in ignore):
            continue
        parsed = parse(key)
        if parsed is None:
            raise header.error(key, problem(key))
        yield key, parsed


Found = Mapping[Leaf, tuple[str, Key]]


def _places(header: Header, keys: Mapping[str, Key]) -> Iterator[tuple[Place, Found]]:
    """The keys of each place. Raises AdapterError if two keys are the same part of it."""

    def order(item: tuple[str, Key]) -> tuple[Part, int, str, int]:
        place = item[1].place
        return place.part, place.layer, place.matrix, -1 if place.piece is None else place.piece

    for _, group in groupby(sorted(keys.items(), key=order), order):
        found: dict[Leaf, tuple[str, Key]] = {}
        for key, parsed in group:
            if parsed.leaf in found:
                raise header.error(key, f"{found[parsed.leaf][0]} already changes this module")
            found[parsed.leaf] = key, parsed
        yield parsed.place, found


def _update(header: Header, found: Found, alphas: DeclaredAlphas) -> Update:
    first, parsed = next(iter(found.values()))
    for leaf, name in (("down", "lora_A (lora_down)"), ("up", "lora_B (lora_up)")):
        if leaf not in found:
            raise header.error(first, f"{name} of this module is missing")
    down, up = found["down"][0], found["up"][0]
    shape = header.tensors[down].shape
    rank = shape[0] if shape else 0
    alpha = found["alpha"][0] if "alpha" in found else None
    return Update(down, up, alpha, rank, alphas.scale(parsed.place.part, parsed.module, rank))


def _check_shapes(header: Header, update: Update, place: Place, config: DiTConfig) -> None:
    """Raises AdapterError unless the factors fit the transformer."""
    if place.layer >= config.num_layers:
        raise header.error(update.down, f"layer {place.layer}: the transformer has {config.num_layers}")
    if not 1 <= update.rank <= MAX_RANK:
        raise header.error(update.down, f"rank {update.rank} is not from 1 to {MAX_RANK}")
    rows, columns = shape(place, config)
    expected = {update.down: (update.rank, columns), update.up: (rows, update.rank)}
    for key, wanted in expected.items():
        if header.tensors[key].shape != wanted:
            raise header.error(key, f"shape {header.tensors[key].shape}, expected {wanted}")
    if update.alpha and header.tensors[update.alpha].shape not in ((), (1,)):
        raise header.error(update.alpha, f"shape {header.tensors[update.alpha].shape}, expected a scalar")
    for key in update.keys:
        if header.tensors[key].dtype not in _DTYPES:
            raise header.error(key, f"dtype {header.tensors[key].dtype}, expected {' or '.join(_DTYPES)}")


def _check_pieces(header: Header, updates: Mapping[Place, Update]) -> None:
    """Raises AdapterError unless the updates of one matrix have one rank, and do not overlap."""
    first: dict[tuple[Part, int, str], tuple[Place, Update]] = {}
    for place, update in updates.items():
        other_place, other = first.setdefault((place.part, place.layer, place.matrix), (place, update))
        if place != other_place and None in (place.piece, other_place.piece):
            raise header.error(update.down, f"{other.down} already changes this matrix")
        if update.rank != other.rank:
            raise header.error(
                update.down, f"rank {update.rank}, but {other.down} of the same matrix has {other.rank}"
            )


def _describe(header: Header, keys: Mapping[str, Key], updates: Mapping[Place, Update]) -> AdapterInfo:
    formats = {parsed.format for parsed in keys.values()}
    parts = {place.part for place in updates}
    return AdapterInfo(
        format=next(each for each in ("kohya", "comfyui", "peft") if each in formats),
        rank=max(update.rank for update in updates.values()),
        modules=len(updates),
        bytes=header.bytes,
        target="both" if len(parts) == 2 else next(iter(parts)),
        trigger_words=header.trigger_words,
    )
