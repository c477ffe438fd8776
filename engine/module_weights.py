"""Fills a module built on `meta`: each tensor goes from the mapped file straight to its place."""

import json

import torch
from torch import Tensor, nn

from engine.kernels.quantized_linear import NF4_BLOCK, Fp8Linear, NF4Linear
from engine.layouts import Sources
from engine.weights import WeightFiles

NF4_STATE = "quant_state.bitsandbytes__nf4"
LinearClass = type[nn.Linear | Fp8Linear | NF4Linear]


def load_weights(
    module: nn.Module,
    files: WeightFiles,
    sources: Sources,
    device: torch.device | str,
    dtype: torch.dtype,
) -> None:
    """Give every parameter its tensor, in `dtype`; quantised ones stay as they are stored.

    Raises CheckpointError on a missing, unexpected or unfit tensor.
    """
    _swap_quantised(module, files, sources)
    used: set[str] = set()
    for name, parameter in list(module.named_parameters()):
        keys = _stored_keys(module, name, sources)
        kept = parameter.dtype if _is_quantised(module, name) else dtype
        target = torch.empty(parameter.shape, dtype=kept, device=device)
        _fill(target, files, keys, shared=name.endswith(".quant_map"))
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, nn.Parameter(target, requires_grad=False))
        used.update(keys)
    files.check_all_used(used)
    module.eval()


def _stored_keys(module: nn.Module, name: str, sources: Sources) -> list[str]:
    """Keys of a parameter: scales hang on the name of the weight they belong to."""
    owner, _, leaf = name.rpartition(".")
    if _is_quantised(module, name) and leaf != "weight":
        join = "_scale" if leaf == "weight_scale" else f".{leaf}"
        return [key + join for key in sources(f"{owner}.weight")]
    return sources(name)


def _is_quantised(module: nn.Module, name: str) -> bool:
    """Whether this is a quantised weight or one of its scales."""
    owner, _, leaf = name.rpartition(".")
    return leaf != "bias" and isinstance(module.get_submodule(owner), Fp8Linear | NF4Linear)


def _fill(target: Tensor, files: WeightFiles, keys: list[str], shared: bool) -> None:
    """Copy each key's tensor into its rows of `target`; `shared` ones must be equal."""
    if shared:
        files.copy(keys[0], target)
        for key in keys[1:]:
            if not torch.equal(files.read(key), target.cpu()):
                raise files.error(key, f"differs from {keys[0]}, which shares its matrix")
        return
    for key, rows in zip(keys, target.chunk(len(keys)), strict=True):
        files.copy(key, rows)


def _swap_quantised(module: nn.Module, files: WeightFiles, sources: Sources) -> None:
    """Replace each Linear by the class its stored weight needs."""
    for name, linear in list(module.named_modules()):
        if not isinstance(linear, nn.Linear):
            continue
        kind = _stored_class(linear, files, sources(f"{name}.weight"))
        if kind is nn.Linear:
            continue
        with torch.device("meta"):
            replacement = kind(linear.in_features, linear.out_features, bias=linear.bias is not None)
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, replacement)


def _stored_class(linear: nn.Linear, files: WeightFiles, keys: list[str]) -> LinearClass:
    """The one class of all the keys that make up the layer's weight."""
    kinds = [_quantisation(files, key) for key in keys]
    for key, kind in zip(keys, kinds, strict=True):
        if kind is not kinds[0]:
            raise files.error(key, f"quantised differently from {keys[0]}, which shares its matrix")
        if kind is NF4Linear:
            shape = (linear.out_features // len(keys), linear.in_features)
            _check_nf4(files, key, shape, is_shared=len(keys) > 1)
    return kinds[0]


def _quantisation(files: WeightFiles, key: str) -> LinearClass:
    if f"{key}_scale" in files:
        return Fp8Linear
    return NF4Linear if f"{key}.{NF4_STATE}" in files else nn.Linear


def _check_nf4(files: WeightFiles, key: str, shape: tuple[int, int], is_shared: bool) -> None:
    """Raises CheckpointError unless the weight is (rows, columns) of plain nf4, in whole rows if stacked."""
    state = f"{key}.{NF4_STATE}"
    files.ignore(state)
    try:
        declared = json.loads(bytes(files.read(state).tolist()))
        stored = tuple(declared["shape"])
        known = declared["blocksize"] == NF4_BLOCK and "nested_blocksize" not in declared
    except (ValueError, KeyError, TypeError) as error:
        raise files.error(state, f"not a quantisation state: {error!r}") from error
    if not known:
        raise files.error(state, f"only nf4 with blocksize {NF4_BLOCK} and no double quantisation is known")
    if stored != shape:
        raise files.error(state, f"shape {stored}, expected {shape}")
    if shape[0] * shape[1] % NF4_BLOCK or shape[1] % (NF4_BLOCK if is_shared else 2):
        raise files.error(state, f"rows of {shape[1]} weights, not whole blocks of {NF4_BLOCK}")
