"""The keys of LoRA adapters in the formats of PEFT, ComfyUI and kohya. Torch-free."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from engine.config.part_configs import DiTConfig

Format = Literal["peft", "comfyui", "kohya"]
Part = Literal["conditional", "unconditional"]
Matrix = Literal["qkv", "o", "w13", "w2", "adaln"]
Leaf = Literal["down", "up", "alpha"]

# Projections that are stacked in a matrix of a block.
PIECES: Mapping[Matrix, int] = {"qkv": 3, "o": 1, "w13": 2, "w2": 1, "adaln": 1}
# Each module that an adapter may change: the matrix, and which of its pieces; None is all of them.
_MODULES: Mapping[str, tuple[Matrix, int | None]] = {
    "attention.to_q": ("qkv", 0),
    "attention.to_k": ("qkv", 1),
    "attention.to_v": ("qkv", 2),
    "attention.qkv": ("qkv", None),
    "attention.to_out.0": ("o", None),
    "attention.o": ("o", None),
    "feed_forward.w1": ("w13", 0),
    "feed_forward.w3": ("w13", 1),
    "feed_forward.w2": ("w2", None),
    "adaln_modulation": ("adaln", None),
}
_FUSED = ("attention.qkv", "attention.o")
_LEAVES: Mapping[str, Leaf] = {
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "alpha": "alpha",
}
_PREFIXES = ("transformer", "diffusion_model", "conditional_transformer", "unconditional_transformer")
# kohya's trainers write underscores for the dots of a module's name.
_NAMES = {name.replace(".", "_"): name for name in _MODULES}
_KEY = re.compile(
    rf"(?:(?P<prefix>{'|'.join(_PREFIXES)})\.|lora_unet_)?layers[._](?P<layer>0|[1-9][0-9]{{0,3}})[._]"
    rf"(?P<module>{'|'.join(re.escape(name).replace(re.escape('.'), '[._]') for name in _MODULES)})"
    rf"\.(?P<leaf>{'|'.join(map(re.escape, _LEAVES))})"
)
_UNSUPPORTED = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lokr_": "LoKr",
    "hada_": "LoHa",
}


@dataclass(frozen=True, slots=True)
class Place:
    """What an update changes: a matrix of a block, or one of the projections stacked in it."""

    part: Part
    layer: int
    matrix: Matrix
    piece: int | None


@dataclass(frozen=True, slots=True)
class Key:
    """A parsed key. `module` is the module's name in the model, with layer and without prefix."""

    place: Place
    leaf: Leaf
    module: str
    format: Format


def parse(key: str) -> Key | None:
    """The parts of a key, or None if it is not one of the supported formats'."""
    found = _KEY.fullmatch(key)
    if found is None:
        return None
    name, prefix = _NAMES[found["module"].replace(".", "_")], found["prefix"]
    part: Part = "unconditional" if prefix == "unconditional_transformer" else "conditional"
    layer = int(found["layer"])
    place = Place(part, layer, *_MODULES[name])
    return Key(place, _LEAVES[found["leaf"]], f"layers.{layer}.{name}", _format(found, name))


def _format(found: re.Match[str], name: str) -> Format:
    if found["leaf"] in ("lora_down.weight", "lora_up.weight") or found[0].startswith("lora_unet_"):
        return "kohya"
    is_comfy = found["prefix"] in ("diffusion_model", "conditional_transformer") or name in _FUSED
    return "comfyui" if is_comfy else "peft"


def problem(key: str) -> str:
    """Why a key that `parse` does not know is refused."""
    kind = next((kind for mark, kind in _UNSUPPORTED.items() if mark in key), None)
    return f"{kind} is not supported" if kind else "unknown key"


def matrix_shape(matrix: Matrix, config: DiTConfig) -> tuple[int, int]:
    """Rows and columns of a matrix, all pieces together."""
    width = config.hidden_size
    shapes: Mapping[Matrix, tuple[int, int]] = {
        "qkv": (3 * width, width),
        "o": (width, width),
        "w13": (2 * config.intermediate_size, width),
        "w2": (width, config.intermediate_size),
        "adaln": (4 * width, config.adaln_dim),
    }
    return shapes[matrix]


def shape(place: Place, config: DiTConfig) -> tuple[int, int]:
    """Rows and columns of what an update changes."""
    rows, columns = matrix_shape(place.matrix, config)
    return (rows if place.piece is None else rows // PIECES[place.matrix]), columns
