"""The headers of adapters: formats, and faults that are refused with file and key."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.adapters.adapter_file import (
    AdapterError,
    AdapterInfo,
    Update,
    both_configs,
    check_adapter,
    read_adapter,
)
from engine.adapters.adapter_header import read_header
from engine.adapters.adapter_keys import Place
from engine.config.part_configs import DiTConfig
from tests.engine.adapters.files import FORMATS, Tensors, comfyui, kohya, peft, write

CONFIG = DiTConfig(
    in_channels=16,
    num_layers=2,
    attention_head_dim=16,
    num_attention_heads=2,
    intermediate_size=48,
    adaln_dim=8,
    llm_features_dim=32,
    mrope_section=(3, 2, 2),
)
Q = "transformer.layers.0.attention.to_q"


@pytest.mark.parametrize(("name", "modules"), [("peft", 16), ("comfyui", 12), ("kohya", 12)])
def test_each_format_is_recognised(tmp_path: Path, name: str, modules: int) -> None:
    file = write(tmp_path / "a.safetensors", FORMATS[name](CONFIG, rank=3))
    info = read_adapter(file, CONFIG)
    size = file.stat().st_size
    assert info == AdapterInfo(name, 3, modules, size, "conditional", ())  # type: ignore[arg-type]


def test_keys_without_a_prefix_and_kohyas_names_with_underscores(tmp_path: Path) -> None:
    bare = write(tmp_path / "bare.safetensors", peft(CONFIG, prefix=""))
    assert read_adapter(bare, CONFIG).format == "peft"
    renamed = {
        "lora_unet_" + key.split(".lora_")[0].replace(".", "_") + ".lora_" + key.split(".lora_")[1]: tensor
        for key, tensor in kohya(CONFIG, prefix="").items()
        if "alpha" not in key
    }
    assert read_adapter(write(tmp_path / "k.safetensors", renamed), CONFIG).format == "kohya"


def test_keys_of_the_unconditional_transformer(tmp_path: Path) -> None:
    own = peft(CONFIG, prefix="unconditional_transformer.")
    file = write(tmp_path / "u.safetensors", own)
    assert read_adapter(file, CONFIG).target == "unconditional"
    file = write(tmp_path / "b.safetensors", own | peft(CONFIG))
    assert read_adapter(file, CONFIG).target == "both"
    with pytest.raises(AdapterError, match=r"u.safetensors: unconditional_transformer\.layers\.1.* has 1"):
        read_adapter(tmp_path / "u.safetensors", CONFIG, unconditional=_config(num_layers=1))


def test_trigger_words_come_from_the_metadata(tmp_path: Path) -> None:
    metadata = {"modelspec.trigger_phrase": "outlined, thin line", "trigger_word": "outlined"}
    file = write(tmp_path / "t.safetensors", peft(CONFIG), metadata)
    assert read_adapter(file, CONFIG).trigger_words == ("outlined", "thin line")


def test_the_scale_is_alpha_by_rank_as_the_metadata_of_peft_declares_it(tmp_path: Path) -> None:
    declared = {"transformer.r": 4, "transformer.lora_alpha": 8, "transformer.alpha_pattern": {"to_k": 2}}
    metadata = {"lora_adapter_metadata": json.dumps(declared)}
    file = write(tmp_path / "a.safetensors", peft(CONFIG), metadata)
    updates = _updates(file)
    qkv = {place.piece: update for place, update in updates.items() if place.matrix == "qkv"}
    scales = {piece: update.declared_scale for piece, update in qkv.items()}
    assert scales == {0: 2.0, 1: 0.5, 2: 2.0}
    del metadata["lora_adapter_metadata"]
    file = write(tmp_path / "plain.safetensors", peft(CONFIG))
    assert {update.declared_scale for update in _updates(file).values()} == {1.0}


def _updates(file: Path) -> Mapping[Place, Update]:
    return check_adapter(read_header(file), both_configs(CONFIG, None), ()).updates


def _config(**changes: int) -> DiTConfig:
    return replace(CONFIG, **changes)


def _fused_qkv() -> Tensors:
    fused = comfyui(CONFIG, prefix="transformer.")
    return {key: tensor for key, tensor in fused.items() if ".qkv." in key}


Edit = Callable[[Tensors], object]


def _set(key: str, *shape: int, dtype: torch.dtype = torch.float32) -> Edit:
    return lambda tensors: tensors.update({key: torch.zeros(shape, dtype=dtype)})


@pytest.mark.parametrize(
    ("edit", "key", "problem"),
    [
        (_set(f"{Q}.dora_scale", 32, 1), f"{Q}.dora_scale", "DoRA is not supported"),
        (_set(f"{Q}.lora_magnitude_vector", 32), f"{Q}.lora_magnitude_vector", "DoRA is not supported"),
        (_set(f"{Q}.lokr_w1", 4, 4), f"{Q}.lokr_w1", "LoKr is not supported"),
        (_set(f"{Q}.hada_w1_a", 4, 4), f"{Q}.hada_w1_a", "LoHa is not supported"),
        (_set("transformer.norm.lora_A.weight", 4, 4), "transformer.norm.lora_A.weight", "unknown key"),
        (_set(f"{Q}.lora_B.bias", 32), f"{Q}.lora_B.bias", "unknown key"),
        (_set(f"{Q}.lora_A.weight", 4, 31), f"{Q}.lora_A.weight", "shape (4, 31), expected (4, 32)"),
        (_set(f"{Q}.lora_B.weight", 32, 3), f"{Q}.lora_B.weight", "shape (32, 3), expected (32, 4)"),
        (_set(f"{Q}.lora_A.weight", 0, 32), f"{Q}.lora_A.weight", "rank 0 is not from 1 to 1024"),
        (_set(f"{Q}.lora_A.weight", 4), f"{Q}.lora_A.weight", "shape (4,), expected (4, 32)"),
        (_set(f"{Q}.alpha", 2), f"{Q}.alpha", "expected a scalar"),
        (
            _set(f"{Q}.lora_A.weight", 4, 32, dtype=torch.int8),
            f"{Q}.lora_A.weight",
            "dtype I8, expected F16 or BF16 or F32",
        ),
        (lambda tensors: tensors.pop(f"{Q}.lora_B.weight"), f"{Q}.lora_A.weight", "lora_B (lora_up)"),
        (lambda tensors: tensors.pop(f"{Q}.lora_A.weight"), f"{Q}.lora_B.weight", "lora_A (lora_down)"),
        (
            lambda tensors: tensors.update(
                {
                    f"{Q}.lora_A.weight": torch.zeros(3, 32),
                    f"{Q}.lora_B.weight": torch.zeros(32, 3),
                }
            ),
            "transformer.layers.0.attention.to_k.lora_A.weight",
            f"rank 4, but {Q}.lora_A.weight of the same matrix has 3",
        ),
        (
            lambda tensors: tensors.update(_fused_qkv()),
            f"{Q}.lora_A.weight",
            "transformer.layers.0.attention.qkv.lora_A.weight already changes this matrix",
        ),
        (
            lambda tensors: tensors.update(peft(CONFIG, prefix="")),
            "transformer.layers.0.adaln_modulation.lora_A.weight",
            "layers.0.adaln_modulation.lora_A.weight already changes this module",
        ),
        (
            lambda tensors: tensors.update(peft(_config(num_layers=3))),
            "transformer.layers.2.adaln_modulation.lora_A.weight",
            "layer 2: the transformer has 2",
        ),
        (lambda tensors: tensors.clear(), "", "no key of a LoRA adapter"),
    ],
)
def test_a_fault_is_refused_with_file_and_key(tmp_path: Path, edit: Edit, key: str, problem: str) -> None:
    tensors = peft(CONFIG)
    edit(tensors)
    file = write(tmp_path / "adapter.safetensors", tensors)
    with pytest.raises(AdapterError) as raised:
        read_adapter(file, CONFIG)
    message = str(raised.value)
    assert message.startswith(f"{file}: {key}")
    assert problem in message


def stored(*offsets: list[int]) -> bytes:
    """A file of tensors of two float32 each, at these places."""
    tensors = {
        name: {"dtype": "F32", "shape": [2], "data_offsets": each}
        for name, each in zip("ab", offsets, strict=False)
    }
    header = json.dumps(tensors).encode()
    return len(header).to_bytes(8, "little") + header + bytes(max(end for _, end in offsets))


def test_keys_that_the_operator_ignores_are_not_read(tmp_path: Path) -> None:
    tensors = peft(CONFIG) | {f"{Q}.dora_scale": torch.zeros(32, 1), "text_encoder.x": torch.zeros(1)}
    file = write(tmp_path / "adapter.safetensors", tensors)
    assert read_adapter(file, CONFIG, ignore=("*.dora_scale", "text_encoder.*")).modules == 16


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not a safetensors file"),
        (b"\xff" * 16, "not a safetensors file"),
        ((5).to_bytes(8, "little") + b"hello", "header"),
        ((12).to_bytes(8, "little") + b'{"a": {"b":1', "header"),
        ((2).to_bytes(8, "little") + b"{}" + b"x", "11 bytes, but the header describes 10"),
        ((17 << 20).to_bytes(8, "little") + bytes(17 << 20), "a header of 17825792 bytes, at most 16777216"),
        (stored([0, 8], [4, 12]), "b: begins at byte 4 of the data, expected 8"),
        (stored([0, 8], [12, 20]), "b: begins at byte 12 of the data, expected 8"),
        (stored([0, 12]), "a: ends at byte 12 of the data, expected 8"),
        (stored([0, 4]), "a: ends at byte 4 of the data, expected 8"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(content)
    with pytest.raises(AdapterError, match=f"^{file}: .*{problem}"):
        read_adapter(file, CONFIG)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.safetensors"):
        with pytest.raises(AdapterError, match=str(path)):
            read_adapter(path, CONFIG)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", peft(CONFIG))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(AdapterError, match="but the header describes"):
        read_adapter(file, CONFIG)


def test_malformed_alphas_are_refused(tmp_path: Path) -> None:
    for declared in ("{", '{"transformer.lora_alpha": "many"}', '{"transformer.lora_alpha": -1}'):
        file = write(tmp_path / "a.safetensors", peft(CONFIG), {"lora_adapter_metadata": declared})
        with pytest.raises(AdapterError, match=r"a\.safetensors: __metadata__\.lora_adapter_metadata"):
            read_adapter(file, CONFIG)
