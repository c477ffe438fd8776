"""Reads adapters from their files."""

import hashlib
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from engine.adapters.adapter import Adapter
from engine.adapters.adapter_file import AdapterFile, Configs, Update, check_adapter
from engine.adapters.adapter_header import AdapterError, Header, header_of
from engine.adapters.adapter_keys import PIECES, Matrix, Part, Place
from engine.config.files import unreadable
from engine.errors import AdapterFailedError, AdapterUnavailableError, EngineError
from engine.kernels.low_rank import Factors
from engine.models.low_rank import Blocks
from engine.request import AdapterUse

_Group = tuple[Part, int, Matrix]


class AdapterGoneError(AdapterError):
    """The file cannot be read, or is not the one that was asked for."""


def load_adapter(
    path: Path, configs: Configs, dtype: torch.dtype, ignore: Sequence[str] = (), digest: str | None = None
) -> Adapter:
    """Read an adapter into the host's memory, in `dtype`, with its alphas in the factors.

    Raises AdapterError if the file does not fit the transformers or holds NaN or infinity; AdapterGoneError
    if it cannot be read, or if the SHA-256 of its bytes is not `digest`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise AdapterGoneError(str(unreadable(path, error))) from error
    if digest is not None and hashlib.sha256(content).hexdigest() != digest:
        raise AdapterGoneError(f"{path}: the file has changed")
    header = header_of(path, content)
    file = check_adapter(header, configs, ignore)
    return _Reader(header, file, safetensors.torch.load(content), dtype).adapter(configs)


def failure(use: AdapterUse, error: Exception) -> EngineError:
    """Why a request that uses an adapter fails if loading it raised `error`. Names no folder."""
    if isinstance(error, AdapterGoneError):
        return AdapterUnavailableError(
            f"The file of the adapter `{use.name}` was replaced or removed after the request was accepted"
        )
    return AdapterFailedError(f"The adapter `{use.name}` cannot be loaded: {_reason(use, error)}")


def _reason(use: AdapterUse, error: Exception) -> str:
    if isinstance(error, AdapterError):
        return str(error).replace(f"{Path(use.path).parent}/", "")
    return (
        "out of memory" if isinstance(error, torch.OutOfMemoryError | MemoryError) else type(error).__name__
    )


class _Reader:
    """Assembles the factors of a checked file."""

    def __init__(
        self, header: Header, file: AdapterFile, tensors: dict[str, Tensor], dtype: torch.dtype
    ) -> None:
        self._header, self._tensors, self._dtype = header, tensors, dtype
        ordered = sorted(file.updates.items(), key=lambda item: _group(item[0]))
        grouped = groupby(ordered, lambda item: _group(item[0]))
        self._factors = {key: self._assemble(key[2], dict(updates)) for key, updates in grouped}

    def adapter(self, configs: Configs) -> Adapter:
        parts: tuple[Part, Part] = ("conditional", "unconditional")
        return Adapter(*(self._blocks(part, configs[part].num_layers) for part in parts))

    def _blocks(self, part: Part, layers: int) -> Blocks:
        if all(key[0] != part for key in self._factors):
            return ()
        return tuple(
            {key[2]: factors for key, factors in self._factors.items() if key[:2] == (part, layer)}
            for layer in range(layers)
        )

    def _assemble(self, matrix: Matrix, updates: dict[Place, Update]) -> Factors:
        """Stack the updates of a matrix; a projection without one gets zeros."""
        given = {place.piece: self._scaled(update) for place, update in updates.items()}
        zeros = tuple(map(torch.zeros_like, next(iter(given.values()))))
        pieces = [given[None]] if None in given else [given.get(i, zeros) for i in range(PIECES[matrix])]
        downs, ups = zip(*pieces, strict=True)
        return Factors(torch.cat(downs).to(self._dtype), torch.stack(ups).to(self._dtype))

    def _scaled(self, update: Update) -> tuple[Tensor, ...]:
        """Both factors in float32, with the scale in the second."""
        down, up = self._read(update.down), self._read(update.up)
        if update.alpha is None:
            return down, up * update.declared_scale
        return down, up * (self._read(update.alpha).item() / update.rank)

    def _read(self, key: str) -> Tensor:
        """Raises AdapterError on NaN or infinity."""
        tensor = self._tensors[key].float()
        if not tensor.isfinite().all():
            raise self._header.error(key, "NaN or infinity")
        return tensor


def _group(place: Place) -> _Group:
    return place.part, place.layer, place.matrix
