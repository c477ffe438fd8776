"""The keys of files for ComfyUI, which name the tensors of the published checkpoints differently."""

import re
from collections.abc import Iterable, Mapping

# Before every key of such a file, except those in NOT_PREFIXED.
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "conditional_transformer.", "model.")
NOT_PREFIXED = ("lm_head.", "scaled_fp8")
# Of parts that are not run: the vision tower, the final norm and the head of the language model; the encoder
# of the VAE, and its statistics, which are read apart from its weights.
UNREAD_OF_TEXT_ENCODER = ("visual.", "language_model.norm.", "lm_head.")
UNREAD_OF_VAE = ("encoder.", "quant_conv.", "bn.")
# Marks the file, describes a layer, or belongs to products in fp8.
_NOT_A_WEIGHT = re.compile(r"(.*\.)?(scaled_fp8|scale_input|input_scale|comfy_quant)")


def published_names(stored: Iterable[str]) -> Mapping[str, str]:
    """Map each key, as a published checkpoint has it, to the stored key."""
    keys = set(stored)
    prefix = next((each for each in PREFIXES if _precedes_all(each, keys)), "")
    return {_published(key.removeprefix(prefix)): key for key in keys}


def is_weight(key: str) -> bool:
    """Whether a tensor under this key is part of the model."""
    return not _NOT_A_WEIGHT.fullmatch(key)


def _precedes_all(prefix: str, keys: set[str]) -> bool:
    prefixed = {key for key in keys if not key.startswith(NOT_PREFIXED)}
    return bool(prefixed) and all(key.startswith(prefix) for key in prefixed)


def _published(key: str) -> str:
    """`scale_weight` is the older name of `weight_scale`."""
    owner, _, leaf = key.rpartition(".")
    return f"{owner}.weight_scale" if leaf == "scale_weight" else key
