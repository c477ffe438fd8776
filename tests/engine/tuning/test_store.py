"""Choices on disk: reused, measured again where the file is unusable, and one measurement at a time."""

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from engine.tuning.machine import cache_folder
from engine.tuning.store import ChoiceStore, Measured

KEY = {"device": "a processor", "threads": 2}
NAMES = {"norm.8": ["torch", "vector"], "linear.8x8": ["plain"]}
MEASURED = Measured({"norm.8": "vector", "linear.8x8": "plain"}, {"norm.8": 0.5, "linear.8x8": 0.0})
OTHER = Measured({"norm.8": "torch", "linear.8x8": "plain"}, {"norm.8": 0.0, "linear.8x8": 0.0})


def fail() -> Measured:
    raise AssertionError("measured again")


def kept_file(folder: Path) -> Path:
    (file,) = folder.glob("*.json")
    return file


def test_a_second_start_measures_nothing(tmp_path: Path) -> None:
    assert ChoiceStore(tmp_path / "new").recall(KEY, NAMES, lambda: MEASURED) == (MEASURED, False)
    assert ChoiceStore(tmp_path / "new").recall(KEY, NAMES, fail) == (MEASURED, True)


@pytest.mark.parametrize("changed", [{"threads": 1}, {"device": "another"}, {"torch": "3.0"}])
def test_another_key_is_measured(tmp_path: Path, changed: dict[str, object]) -> None:
    store = ChoiceStore(tmp_path)
    store.recall(KEY, NAMES, lambda: MEASURED)
    assert store.recall(KEY | changed, NAMES, lambda: OTHER) == (OTHER, False)
    assert store.recall(KEY, NAMES, fail) == (MEASURED, True)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "\x00",
        '{"choices": {}, "gains": {}}',
        '{"choices": 1, "gains": 1}',
        json.dumps({"choices": MEASURED.choices | {"norm.8": "unknown"}, "gains": MEASURED.gains}),
        json.dumps({"choices": MEASURED.choices | {"norm.8": []}, "gains": MEASURED.gains}),
        json.dumps({"choices": MEASURED.choices, "gains": MEASURED.gains | {"norm.8": "much"}}),
        "[" * 100_000,
    ],
)
def test_a_damaged_file_is_replaced(tmp_path: Path, content: str) -> None:
    store = ChoiceStore(tmp_path)
    store.recall(KEY, NAMES, lambda: MEASURED)
    kept_file(tmp_path).write_text(content)
    assert store.recall(KEY, NAMES, lambda: OTHER) == (OTHER, False)
    assert store.recall(KEY, NAMES, fail) == (OTHER, True)
    assert list(tmp_path.glob("*.tmp")) == []


def test_a_folder_that_cannot_be_written_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            store = ChoiceStore(tmp_path / "file" / "folder")
            assert store.recall(KEY, NAMES, lambda: MEASURED) == (MEASURED, False)
    assert "will be measured at every start" in caplog.text


def test_a_file_that_cannot_be_replaced_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = ChoiceStore(tmp_path)
    store.recall(KEY, NAMES, lambda: MEASURED)
    file = kept_file(tmp_path)
    file.unlink()
    (file / "in the way").mkdir(parents=True)
    assert store.recall(KEY, NAMES, lambda: MEASURED) == (MEASURED, False)
    assert "will be measured at every start" in caplog.text


def test_without_a_folder_nothing_is_kept() -> None:
    assert ChoiceStore(None).recall(KEY, NAMES, lambda: MEASURED) == (MEASURED, False)


def test_those_that_start_together_choose_alike(tmp_path: Path) -> None:
    together = Barrier(4)

    def start(number: int) -> Measured:
        together.wait(60)
        return ChoiceStore(tmp_path).recall(KEY, NAMES, lambda: (MEASURED, OTHER)[number % 2])[0]

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(start, range(4)))
    assert results == [results[0]] * 4


def test_the_folder_is_beside_the_compile_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    for name in ("XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert cache_folder() == Path("/home/someone/.cache/ideoserve")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/ideoserve")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/inductor")
    assert cache_folder() == Path("/inductor/ideoserve")
