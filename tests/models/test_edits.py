"""Edits with the demo model change what the prompt asks for, and keep what they must."""

from pathlib import Path

import pytest

from benchmarks.edits import Editor, paint_letters, recolour


@pytest.fixture(scope="module")
def editor() -> Editor:
    return Editor(Path("models/demo"), "V4_TURBO_12")


def test_a_high_strength_follows_the_prompt_and_a_low_one_the_source(editor: Editor) -> None:
    followed, kept = (recolour(editor, "sentence", strength, pairs=6) for strength in (0.9, 0.1))
    assert followed["blue"] >= 4 / 6
    assert kept["blue"] == 0
    assert kept["place"] >= 5 / 6


def test_painting_into_a_corner_keeps_every_other_pixel(editor: Editor) -> None:
    assert paint_letters(editor, 2)["kept"] == 1
