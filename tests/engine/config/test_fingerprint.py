"""A checkpoint's fingerprint changes with its weights and configs, not with its place or other files."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.config.fingerprint import fingerprint
from engine.errors import CheckpointError
from tests.engine.checkpoints import edit_tensors

WEIGHTS = "transformer/model.safetensors"
FILES = ("model_index.json", "vae/config.json", "tokenizer/tokenizer.json", "tokenizer/chat_template.jinja")
# The largest is longer than any sample, and changes below are made in its middle too.
TENSORS = {
    "large": torch.arange(1 << 20, dtype=torch.float32),
    "norm": torch.ones(7),
    "scalar": torch.tensor(2.0),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    for name in (*FILES, WEIGHTS):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (folder / name).write_text("x" * (2 << 20))
    save_file(TENSORS, folder / WEIGHTS)
    return folder


@pytest.mark.parametrize("key", TENSORS)
@pytest.mark.parametrize("place", ["first", "last", "all"])
def test_a_tensor_that_differs(folder: Path, key: str, place: str) -> None:
    chosen = {"first": slice(1), "last": slice(-1, None), "all": slice(None)}[place]
    before = fingerprint(folder)
    edit_tensors(folder / WEIGHTS, lambda held: held[key].view(-1)[chosen].add_(1))
    assert fingerprint(folder) != before


def test_large_tensors_are_sampled_in_between(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.config.fingerprint.STRIDE_BYTES", 1 << 20)
    before = fingerprint(folder)
    edit_tensors(folder / WEIGHTS, lambda held: held["large"][1 << 18].add_(1))
    assert fingerprint(folder) != before


def _rename(held: dict[str, Tensor]) -> None:
    held["other"] = held.pop("norm")


def _reshape(held: dict[str, Tensor]) -> None:
    held["large"] = held["large"].view(1 << 10, 1 << 10)


@pytest.mark.parametrize("edit", [_rename, _reshape])
def test_names_and_shapes(folder: Path, edit: Callable[[dict[str, Tensor]], None]) -> None:
    before = fingerprint(folder)
    edit_tensors(folder / WEIGHTS, edit)
    assert fingerprint(folder) != before


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("at", [0, 1 << 20, -1])
def test_a_config_a_tokenizer_or_a_template_that_differs_anywhere(folder: Path, name: str, at: int) -> None:
    before = fingerprint(folder)
    content = bytearray((folder / name).read_bytes())
    content[at] ^= 1
    (folder / name).write_bytes(content)
    assert fingerprint(folder) != before


def test_links_to_folders_and_files_are_followed(folder: Path, tmp_path: Path) -> None:
    before = fingerprint(folder)
    elsewhere = (folder / "transformer").rename(tmp_path / "elsewhere")
    (folder / "transformer").symlink_to(elsewhere)
    blob = (elsewhere / "model.safetensors").rename(tmp_path / "blob")
    (elsewhere / "model.safetensors").symlink_to(blob)
    assert fingerprint(folder) == before
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    assert fingerprint(folder) != before


def test_a_link_to_the_folder_itself_is_no_trap(folder: Path) -> None:
    before = fingerprint(folder)
    (folder / "loop").symlink_to(folder)
    assert fingerprint(folder) == before


def test_place_and_time_do_not_count(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    os.utime(copy / WEIGHTS, (0, 0))
    assert fingerprint(copy) == fingerprint(folder)


@pytest.mark.parametrize(
    "name",
    [
        "._model_index.json",
        "transformer/._model.safetensors",
        "transformer/.DS_Store",
        "transformer/Thumbs.db",
        "transformer/desktop.ini",
        "transformer/model.safetensors.tmp",
        "transformer/model.safetensors.incomplete",
        ".cache/huggingface/download/model.json",
        "__MACOSX/transformer/._model.safetensors",
        "README.md",
    ],
)
def test_files_that_the_server_does_not_read(folder: Path, name: str) -> None:
    before = fingerprint(folder)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"\0\5\x16\7")
    assert fingerprint(folder) == before


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"short",
        b"\xff" * 16,
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"{}",
        (9).to_bytes(8, "little") + b'{"a": 12}',
        (28).to_bytes(8, "little") + b'{"a": {"data_offsets": [9]}}',
        (38).to_bytes(8, "little") + b'{"a": {"data_offsets": [-9, 99999999]}}',
        (30).to_bytes(8, "little") + b'{"a": {"data_offsets": [1e999, 2]}}',
        (20_000).to_bytes(8, "little") + b"[" * 20_000,
    ],
)
def test_a_header_that_is_no_header_is_left_to_the_loader(folder: Path, head: bytes) -> None:
    (folder / WEIGHTS).write_bytes(head)
    before = fingerprint(folder)
    (folder / WEIGHTS).write_bytes(head + b"1")
    assert fingerprint(folder) != before


def test_a_file_that_is_none(folder: Path) -> None:
    (folder / "transformer" / "other.safetensors").symlink_to("absent")
    with pytest.raises(CheckpointError, match=r"transformer/other\.safetensors: No such file"):
        fingerprint(folder)


def test_an_adapter_for_the_unconditional_pass_counts(folder: Path, tmp_path: Path) -> None:
    plain, file = fingerprint(folder), tmp_path / "a.safetensors"
    save_file({"norm": torch.ones(7)}, file)
    first = fingerprint(folder, uncond_adapter=file)
    save_file({"norm": torch.zeros(7)}, file)
    second = fingerprint(folder, uncond_adapter=file)
    assert len({plain, first, second}) == 3
    with pytest.raises(CheckpointError, match=r"^--uncond-adapter: .*/absent: No such file"):
        fingerprint(folder, uncond_adapter=tmp_path / "absent")
    (folder / WEIGHTS).unlink()
    assert fingerprint(folder, uncond_adapter=tmp_path / "absent") == "", "a front without weights"


def test_the_fingerprint_of_the_same_files_stays_over_versions(folder: Path) -> None:
    """Fleets and the metadata of images depend on it."""
    assert fingerprint(folder) == "4c539e80f09d"


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts bytes as Linux does")
def test_fifty_gigabytes_take_few_reads(folder: Path) -> None:
    size = 50_000_000_000
    header = b'{"a": {"dtype": "U8", "shape": [%d], "data_offsets": [0, %d]}}' % (size, size)
    with (folder / WEIGHTS).open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)  # sparse
    before = _bytes_read()
    fingerprint(folder)
    assert _bytes_read() - before < 32 << 20


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def test_a_folder_without_weights_has_none(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    assert fingerprint(folder) == ""
