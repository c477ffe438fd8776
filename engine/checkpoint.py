"""The four published checkpoint layouts -> modules, one tensor at a time.

Modules are built on `meta`; each tensor goes from its mapped file straight to its place,
so that no second copy of the model is ever in memory.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from engine.errors import CheckpointError
from engine.models.dit import DiT, DiTConfig
from engine.models.text_encoder import TextEncoder
from engine.models.vae import VAE, VAEConfig
from engine.quantization import NF4_BLOCK, Fp8Linear, NF4Linear
from engine.weights import WeightFiles

Config = TypeVar("Config", DiTConfig, VAEConfig)
# Names one parameter's tensors in the file, in the order of its rows.
Sources = Callable[[str], list[str]]


@dataclass(frozen=True, slots=True)
class LatentNorm:
    """Per-channel affine from the DiT's latents to the VAE's: z * scale + shift, (C,) float32 each."""

    scale: Tensor
    shift: Tensor


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The loaded model. `unconditional` may be `conditional` itself (distilled checkpoints)."""

    text_encoder: TextEncoder
    conditional: DiT
    unconditional: DiT
    vae: VAE
    latent_norm: LatentNorm


def load_pipeline(
    path: Path,
    device: torch.device | str,
    dtype: torch.dtype,
    uncond_device: torch.device | str | None = None,
) -> Pipeline:
    """Load every part of the checkpoint folder `path`. Raises CheckpointError naming file and key."""
    conditional, layout = load_dit(path / "transformer", device, dtype)
    unconditional = conditional
    if (path / "unconditional_transformer").is_dir():
        unconditional, _ = load_dit(path / "unconditional_transformer", uncond_device or device, dtype)
    text_encoder = load_text_encoder(path / "text_encoder", device, dtype)
    _check_feature_width(path, text_encoder, conditional)
    vae = load_vae(path / "vae", device, dtype)
    norm = load_latent_norm(path / "vae", layout, vae.config, device)
    return Pipeline(text_encoder, conditional, unconditional, vae, norm)


def load_dit(folder: Path, device: torch.device | str, dtype: torch.dtype) -> tuple[DiT, str]:
    """One DiT and the layout it came in ("diffusers" or "official")."""
    files = WeightFiles(folder)
    layout = dit_layout(files)
    with torch.device("meta"):
        dit = DiT(_read_config(folder, DiTConfig))
    _load(dit, files, DIT_SOURCES[layout], device, dtype)
    return dit, layout


def load_text_encoder(folder: Path, device: torch.device | str, dtype: torch.dtype) -> TextEncoder:
    """The text model; `visual.*` in the file is left unread."""
    config = _read_json(folder / "config.json")
    files = WeightFiles(folder, ignore=("visual.",))
    try:
        with torch.device("meta"):
            encoder = TextEncoder(config)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from error
    _load(encoder, files, lambda name: [name], device, dtype)
    rotary = encoder.language_model.rotary_emb
    # Its frequencies are computed, not stored: build them again off `meta`.
    encoder.language_model.rotary_emb = type(rotary)(config=encoder.language_model.config).to(device)
    return encoder


def load_vae(folder: Path, device: torch.device | str, dtype: torch.dtype) -> VAE:
    """The decoder; the encoder and the bn statistics in the file are left unread."""
    files = WeightFiles(folder, ignore=("encoder.", "quant_conv.", "bn."))
    with torch.device("meta"):
        vae = VAE(_read_config(folder, VAEConfig))
    _load(vae, files, lambda name: [name], device, dtype)
    return vae


def load_latent_norm(folder: Path, layout: str, config: VAEConfig, device: torch.device | str) -> LatentNorm:
    """bn statistics in the diffusers layout; the published constants in the official one."""
    if layout == "official":
        constants = _read_json(Path(__file__).parent / "models" / "latent_norm.json")
        scale, shift = torch.tensor(constants["scale"]), torch.tensor(constants["shift"])
    else:
        files = WeightFiles(folder)
        variance = files.read("bn.running_var").float()
        scale = torch.sqrt(variance + config.batch_norm_eps)
        shift = files.read("bn.running_mean").float()
    channels = 4 * config.latent_channels
    if scale.shape != (channels,) or shift.shape != (channels,):
        raise CheckpointError(f"{folder}: the latent norm has {len(scale)} channels, the VAE {channels}")
    return LatentNorm(scale.to(device), shift.to(device))


def dit_layout(files: WeightFiles) -> str:
    """ "diffusers" or "official", by how attention is stored. Raises CheckpointError on neither."""
    for layout, name in (("diffusers", "attention.to_q.weight"), ("official", "attention.qkv.weight")):
        if f"layers.0.{name}" in files:
            return layout
    raise CheckpointError(
        f"{files.folder}: unknown layout: "
        "neither layers.0.attention.to_q.weight nor layers.0.attention.qkv.weight"
    )


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
    """Every (key, shape) that the unquantised file of `module` must hold."""
    for name, parameter in module.named_parameters():
        keys = sources(name)
        for key in keys:
            yield key, (parameter.shape[0] // len(keys), *parameter.shape[1:])


def _load(
    module: nn.Module,
    files: WeightFiles,
    sources: Sources,
    device: torch.device | str,
    dtype: torch.dtype,
) -> None:
    _swap_quantised(module, files, sources)
    used: set[str] = set()
    for name, parameter in list(module.named_parameters()):
        keys = _stored_keys(module, name, sources)
        target = torch.empty(parameter.shape, dtype=_kept_dtype(module, name, dtype), device=device)
        _fill(target, files, keys, shared=name.endswith(".quant_map"))
        _set_parameter(module, name, target)
        used.update(keys)
    files.check_all_used(used)
    module.eval()


def _stored_keys(module: nn.Module, name: str, sources: Sources) -> list[str]:
    """Keys of a parameter: scales hang on the name of the weight they belong to."""
    owner, _, leaf = name.rpartition(".")
    if leaf == "weight_scale":
        return [f"{key}_scale" for key in sources(f"{owner}.weight")]
    if leaf in ("absmax", "quant_map") and isinstance(module.get_submodule(owner), NF4Linear):
        return [f"{key}.{leaf}" for key in sources(f"{owner}.weight")]
    return sources(name)


def _kept_dtype(module: nn.Module, name: str, dtype: torch.dtype) -> torch.dtype:
    """Quantised weights and their scales keep the dtype of the file; all else is in compute dtype."""
    owner, _, leaf = name.rpartition(".")
    if leaf != "bias" and isinstance(module.get_submodule(owner), Fp8Linear | NF4Linear):
        return module.get_parameter(name).dtype
    return dtype


def _fill(target: Tensor, files: WeightFiles, keys: list[str], shared: bool) -> None:
    """Copy each key's tensor into its rows of `target`; `shared` ones must be equal and are copied once."""
    rows = target.shape[0] if shared else target.shape[0] // len(keys)
    for index, key in enumerate(keys):
        place = target if shared else target[index * rows : (index + 1) * rows]
        source = files.read(key)
        if source.dtype == torch.uint8:
            source = source.flatten()
        if source.shape != place.shape:
            raise files.error(key, f"shape {tuple(source.shape)}, expected {tuple(place.shape)}")
        if (source.dtype == torch.float8_e4m3fn) != (place.dtype == torch.float8_e4m3fn):
            raise files.error(key, f"dtype {source.dtype}, expected {place.dtype}")
        place.copy_(source)


def _set_parameter(module: nn.Module, name: str, value: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))


def _swap_quantised(module: nn.Module, files: WeightFiles, sources: Sources) -> None:
    """Replace each Linear by the class its stored weight needs."""
    for name, linear in list(module.named_modules()):
        if not isinstance(linear, nn.Linear):
            continue
        keys = sources(f"{name}.weight")
        kinds = {_linear_class(files, key) for key in keys}
        if len(kinds) > 1:
            raise files.error(keys[0], f"quantised differently from {keys[1]}, which shares its matrix")
        kind = kinds.pop()
        if kind is nn.Linear:
            continue
        if kind is NF4Linear and len(keys) > 1 and linear.in_features % NF4_BLOCK:
            raise files.error(keys[0], f"nf4 rows of {linear.in_features}, not a multiple of {NF4_BLOCK}")
        with torch.device("meta"):
            replacement = kind(linear.in_features, linear.out_features, bias=linear.bias is not None)
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, replacement)


def _linear_class(files: WeightFiles, key: str) -> type[nn.Linear | Fp8Linear | NF4Linear]:
    if f"{key}_scale" in files:
        return Fp8Linear
    state = f"{key}.quant_state.bitsandbytes__nf4"
    if state not in files:
        return nn.Linear
    declared = json.loads(bytes(files.read(state).tolist()))
    if declared.get("blocksize") != NF4_BLOCK or "nested_blocksize" in declared:
        raise files.error(state, f"only nf4 with blocksize {NF4_BLOCK} and no double quantisation is known")
    files.ignore(state)
    return NF4Linear


def _check_feature_width(path: Path, encoder: TextEncoder, dit: DiT) -> None:
    if encoder.features_dim != dit.config.llm_features_dim:
        raise CheckpointError(
            f"{path / 'transformer' / 'config.json'}: llm_features_dim: {dit.config.llm_features_dim}, "
            f"but the text encoder makes {encoder.features_dim}"
        )


def _read_config(folder: Path, kind: type[Config]) -> Config:
    file = folder / "config.json"
    declared = _read_json(file)
    known = {f.name for f in fields(kind)}
    try:
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in declared.items() if k in known
        }
        return kind(**values)
    except TypeError as error:
        raise CheckpointError(f"{file}: {error}") from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from error
    return value
