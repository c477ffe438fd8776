"""Files in a folder of adapters that must harm nothing but themselves."""

import os
from collections.abc import Callable
from pathlib import Path

import torch

from tests.engine.adapters.files import Tensors, peft
from tests.server.adapters.files import (
    DIT,
    LONG_AGO,
    write_adapter,
    write_broken,
    write_settings,
    write_tensors,
)

KEY = "transformer.layers.0.attention.to_q"
GIB = 1 << 30
# What `GET /v1/adapters` says about each.
REASONS = {
    "broken": "broken.safetensors: not a safetensors file",
    "truncated": "truncated.safetensors: ",
    "nan": f"nan.safetensors: {KEY}.lora_B.weight: NaN or infinity",
    "infinite": f"infinite.safetensors: {KEY}.lora_B.weight: NaN or infinity",
    "shape": f"shape.safetensors: {KEY}.lora_A.weight: shape (2, 7), expected ",
    "dora": f"dora.safetensors: {KEY}.dora_scale: DoRA is not supported",
    "lokr": f"lokr.safetensors: {KEY}.lokr_w1: LoKr is not supported",
    "loha": f"loha.safetensors: {KEY}.hada_w1_a: LoHa is not supported",
    "header": f"header.safetensors: a header of {GIB} bytes, at most 16777216",
    "pipe": "pipe.safetensors: not a regular file",
    "outside": "outside.safetensors: a link out of the folder",
    "inside-out": "a.safetensors: a link out of the folder",
    "settings-out": "ideoserve.json: a link out of the folder",
    "dangling": "dangling.safetensors: No such file or directory",
    "loop": "loop: Too many levels of symbolic links",
    "two": "two: 2 safetensors files, `a.safetensors`, `b.safetensors`: keep one, or ",
    "odd": "ideoserve.json: scale: Input should be less than or equal to 2",
    "same": "same and same.safetensors have the same name",
    "bad name": "bad name.safetensors: an adapter is named by 1 to 64 letters",
    "line\nbreak": "line break.safetensors: an adapter is named by 1 to 64 letters",
    "ünïcode": "ünïcode.safetensors: an adapter is named by 1 to 64 letters",
    "not-utf8-\ufffd": "not-utf8-\ufffd.safetensors: an adapter is named by 1 to 64 letters",
}


def write_hostile(folder: Path, elsewhere: Path) -> None:
    """One of each kind. Links lead to `elsewhere`."""
    for name, edit in EDITS.items():
        tensors = peft(DIT, rank=2)
        edit(tensors)
        write_tensors(folder / f"{name}.safetensors", tensors)
    write_broken(folder / "broken.safetensors")
    whole = write_adapter(elsewhere / "a.safetensors")
    write_broken(folder / "truncated.safetensors", whole.read_bytes()[:-8])
    write_broken(folder / "header.safetensors", GIB.to_bytes(8, "little"), size=GIB + 8)
    os.mkfifo(folder / "pipe.safetensors")
    os.utime(folder / "pipe.safetensors", LONG_AGO)
    (folder / "dangling.safetensors").symlink_to(folder / "none")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "outside.safetensors").symlink_to(whole)
    (folder / "inside-out").mkdir()
    (folder / "inside-out" / "a.safetensors").symlink_to(whole)
    write_settings(elsewhere, keys=["a secret"])
    write_adapter(folder / "settings-out" / "a.safetensors")
    (folder / "settings-out" / "ideoserve.json").symlink_to(elsewhere / "ideoserve.json")
    for file in ("two/a", "two/b", "odd/a", "bad name", "same", "same/a", "line\nbreak", "ünïcode"):
        write_adapter(folder / f"{file}.safetensors")
    write_adapter(folder / os.fsdecode(b"not-utf8-\xff.safetensors"))
    write_settings(folder / "odd", scale=3)
    (folder / "README.md").write_text("not an adapter")


def _fill(value: float) -> Callable[[Tensors], object]:
    """With `value` in the last place of a bfloat16 tensor."""

    def edit(tensors: Tensors) -> None:
        tensors[f"{KEY}.lora_B.weight"] = tensors[f"{KEY}.lora_B.weight"].bfloat16()
        tensors[f"{KEY}.lora_B.weight"][-1, -1] = value

    return edit


def _add(leaf: str, *shape: int) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({f"{KEY}.{leaf}": torch.zeros(shape)})


EDITS: dict[str, Callable[[Tensors], object]] = {
    "nan": _fill(float("nan")),
    "infinite": _fill(float("-inf")),
    "shape": _add("lora_A.weight", 2, 7),
    "dora": _add("dora_scale", 1),
    "lokr": _add("lokr_w1", 1),
    "loha": _add("hada_w1_a", 1),
}
