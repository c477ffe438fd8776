"""Loads weights into a module built on `meta`, reading each tensor once."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from engine.checkpoint.layouts import Sources
from engine.checkpoint.tensor_reader import in_flight
from engine.checkpoint.weight_files import WeightFiles
from engine.errors import CheckpointError
from engine.precision import NF4_BLOCK, Quantization
from engine.quantized.fp8 import Fp8Linear
from engine.quantized.layer import QuantizedLinear, frozen, replace, scale_fault
from engine.quantized.nf4 import NF4Linear
from engine.quantized.quantize import can_quantize, quantized

NF4_STATE = "quant_state.bitsandbytes__nf4"
LinearClass = type[nn.Linear | Fp8Linear | NF4Linear]
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Part(Generic[M]):
    """A module on `meta` and the files of its weights, whose keys, shapes and dtypes have been checked."""

    module: M
    files: WeightFiles
    sources: Sources

    @classmethod
    def open(cls, kind: Callable[[Any], M], config: Any, files: WeightFiles, sources: Sources) -> "Part[M]":
        """Build `kind(config)` and check the headers of the files against it, without reading weights.

        Raises CheckpointError if a key is missing or unexpected, or if a shape or dtype does not fit.
        """
        part = cls(_build(kind, config, files.folder / "config.json"), files, sources)
        _swap_quantised(part.module, files, sources)
        part._check()
        return part

    def load(self, device: torch.device | str, dtype: torch.dtype, quantize: Quantization | None = None) -> M:
        """Load every parameter in `dtype`, quantised ones as they are stored; `quantize` other linear layers.

        Raises CheckpointError on NaN, infinity or an invalid scale.
        """
        chosen = [
            name for name, layer in self.module.named_modules() if quantize and can_quantize(layer, quantize)
        ]
        targets = {
            name: torch.empty(parameter.shape, dtype=self.kept_dtype(name, dtype), device=device)
            for name, parameter in self.module.named_parameters()
            if name.rpartition(".")[0] not in chosen
        }
        in_flight(lambda name: self._fill(name, targets[name]), targets)
        for name, target in targets.items():
            replace(self.module, name, frozen(target))
        for name in chosen:
            self._load_quantized(name, device, dtype, cast(Quantization, quantize))
        return self.module.eval()

    def kept_dtype(self, name: str, dtype: torch.dtype) -> torch.dtype:
        """The dtype of a parameter in memory: as stored if quantised, else `dtype`."""
        return self.module.get_parameter(name).dtype if _is_quantised(self.module, name) else dtype

    def can_quantize(self, kind: Quantization) -> bool:
        """Whether `quantize` applies to any layer."""
        return any(can_quantize(layer, kind) for layer in self.module.modules())

    def _load_quantized(
        self, name: str, device: torch.device | str, dtype: torch.dtype, kind: Quantization
    ) -> None:
        """Load a linear layer with weights in float32, and replace it by its quantised form."""
        layer = self.module.get_submodule(name)
        for leaf, parameter in list(layer.named_parameters(recurse=False)):
            kept = torch.float32 if leaf == "weight" else dtype
            target = torch.empty(parameter.shape, dtype=kept, device=device)
            self._fill(f"{name}.{leaf}", target)
            replace(self.module, f"{name}.{leaf}", frozen(target))
        replace(self.module, name, quantized(cast(nn.Linear, layer), kind))

    def _check(self) -> None:
        used: set[str] = set()
        for name, parameter in self.module.named_parameters():
            for key, shape in self._stored(name, parameter):
                stored = self.files.shape(key) if self._is_one_scale(name, key) else shape
                self.files.check(key, stored, parameter.dtype)
                used.add(key)
        self.files.check_all_used(used)

    def _stored(self, name: str, parameter: Tensor) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield key and shape of each tensor that makes up a parameter, in the order of its rows."""
        keys = _stored_keys(self.module, name, self.sources)
        pieces = 1 if _is_shared(name) else len(keys)
        for key in keys:
            yield key, (parameter.shape[0] // pieces, *parameter.shape[1:])

    def _fill(self, name: str, target: Tensor) -> None:
        """Copy the tensor of each key into its rows of `target`. Tensors that share rows must be equal."""
        first, *others = keys = _stored_keys(self.module, name, self.sources)
        if not _is_shared(name):
            for key, rows in zip(keys, target.chunk(len(keys)), strict=True):
                self._copy(name, key, rows)
            return
        self._copy(name, first, target)
        for key in others:
            if not torch.equal(self.files.read(key), target.cpu()):
                raise self.files.error(key, f"differs from {first}, which shares its matrix")

    def _copy(self, name: str, key: str, target: Tensor) -> None:
        if self._is_one_scale(name, key):
            target.copy_(self.files.read(key))
        else:
            self.files.copy(key, target)
        if fault := scale_fault(name.rpartition(".")[2], target):
            raise self.files.error(key, fault)

    def _is_one_scale(self, name: str, key: str) -> bool:
        """Whether all rows of an fp8 matrix share one scale, as in files for ComfyUI."""
        return name.endswith(".weight_scale") and self.files.is_scalar(key)


def _build(kind: Callable[[Any], M], config: Any, file: Path) -> M:
    """Build `kind(config)` on `meta`. Raises CheckpointError if the sizes make no module."""
    try:
        with torch.device("meta"):
            return kind(config)
    except Exception as error:  # torch has no common base class for these
        raise CheckpointError(f"{file}: {type(error).__name__}: {error}") from error


def _stored_keys(module: nn.Module, name: str, sources: Sources) -> list[str]:
    """Keys of a parameter. The key of a scale is the key of its weight and a suffix."""
    owner, _, leaf = name.rpartition(".")
    if _is_quantised(module, name) and leaf != "weight":
        join = "_scale" if leaf == "weight_scale" else f".{leaf}"
        return [key + join for key in sources(f"{owner}.weight")]
    return sources(name)


def _is_shared(name: str) -> bool:
    """Whether all tensors that make up a matrix share this parameter."""
    return name.endswith(".quant_map")


def _is_quantised(module: nn.Module, name: str) -> bool:
    """Whether it is a quantised weight or one of its scales."""
    owner, _, leaf = name.rpartition(".")
    return leaf != "bias" and isinstance(module.get_submodule(owner), QuantizedLinear)


def _swap_quantised(module: nn.Module, files: WeightFiles, sources: Sources) -> None:
    """Replace each Linear by the class for its stored weight."""
    for name, linear in list(module.named_modules()):
        if not isinstance(linear, nn.Linear):
            continue
        kind = _stored_class(linear, files, sources(f"{name}.weight"))
        if kind is nn.Linear:
            continue
        with torch.device("meta"):
            replacement = kind(linear.in_features, linear.out_features, bias=linear.bias is not None)
        replace(module, name, replacement)


def _stored_class(linear: nn.Linear, files: WeightFiles, keys: list[str]) -> LinearClass:
    """The layer's class. Raises CheckpointError if the tensors of its weight are quantised differently."""
    kinds = [_quantisation(files, key) for key in keys]
    for key, kind in zip(keys, kinds, strict=True):
        if kind is not kinds[0]:
            raise files.error(key, f"quantised differently from {keys[0]}, which shares its matrix")
        shape = (linear.out_features // len(keys), linear.in_features)
        if kind is NF4Linear:
            _check_nf4(files, key, shape, is_shared=len(keys) > 1)
        _check_comfy_format(files, key)
    return kinds[0]


def _quantisation(files: WeightFiles, key: str) -> LinearClass:
    if f"{key}_scale" in files:
        return Fp8Linear
    return NF4Linear if f"{key}.{NF4_STATE}" in files else nn.Linear


def _check_comfy_format(files: WeightFiles, key: str) -> None:
    """Raises CheckpointError if the description of a layer for ComfyUI names another format."""
    description = f"{key.removesuffix('.weight')}.comfy_quant"
    if description not in files:
        return
    try:
        declared = json.loads(bytes(files.read(description).tolist()))["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise files.error(description, f"not a quantisation format: {error!r}") from error
    if declared != "float8_e4m3fn":
        raise files.error(description, f"weights in the format {declared!r}, expected 'float8_e4m3fn'")


def _check_nf4(files: WeightFiles, key: str, shape: tuple[int, int], is_shared: bool) -> None:
    """Raises CheckpointError unless the weight is nf4 of this shape, in blocks that rows do not share.

    `shape` is (rows, columns). Blocks may cross rows if the weight is the only one of its matrix.
    """
    state = f"{key}.{NF4_STATE}"
    files.ignore(state)
    try:
        declared = json.loads(bytes(files.read(state).tolist()))
        stored = tuple(declared["shape"])
        known = declared["blocksize"] == NF4_BLOCK and "nested_blocksize" not in declared
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise files.error(state, f"not a quantisation state: {error!r}") from error
    if not known:
        raise files.error(state, f"must be nf4 with blocksize {NF4_BLOCK} and without double quantisation")
    if stored != shape:
        raise files.error(state, f"shape {stored}, expected {shape}")
    if shape[0] * shape[1] % NF4_BLOCK or shape[1] % (NF4_BLOCK if is_shared else 2):
        raise files.error(state, f"rows of {shape[1]} weights, not whole blocks of {NF4_BLOCK}")
