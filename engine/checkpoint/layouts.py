"""The keys of a DiT's tensors in the published checkpoint layouts."""

from collections.abc import Callable, Iterator, Mapping

from torch import nn

from engine.checkpoint.weight_files import WeightFiles

# Maps a parameter to the keys of the tensors that make it up, in the order of its rows.
Sources = Callable[[str], list[str]]


def dit_layout(files: WeightFiles) -> str:
    """Return "diffusers" or "official", by the keys of attention. Raises CheckpointError on neither."""
    queries = {"diffusers": "layers.0.attention.to_q.weight", "official": "layers.0.attention.qkv.weight"}
    for layout, key in queries.items():
        if key in files:
            return layout
    raise files.missing(*queries.values())


def same_names(name: str) -> list[str]:
    return [name]


def _official_sources(name: str) -> list[str]:
    if ".w13." in name:
        return [name.replace(".w13.", ".w1."), name.replace(".w13.", ".w3.")]
    return [name]


def _diffusers_sources(name: str) -> list[str]:
    if ".qkv." in name:
        return [name.replace(".qkv.", f".to_{part}.") for part in "qkv"]
    return _official_sources(name.replace(".attention.o.", ".attention.to_out.0."))


DIT_SOURCES: Mapping[str, Sources] = {"diffusers": _diffusers_sources, "official": _official_sources}


def expected_tensors(module: nn.Module, sources: Sources) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield each (key, shape) that the unquantised weights of `module` must have."""
    for name, parameter in module.named_parameters():
        keys = sources(name)
        for key in keys:
            yield key, (parameter.shape[0] // len(keys), *parameter.shape[1:])
