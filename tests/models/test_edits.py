"""Edits with the demo model change what the prompt asks for, and keep the rest."""

from pathlib import Path

import pytest

from benchmarks.edits import Editor, paint_letters, recolour


@pytest.fixture(scope="module")
def editor() -> Editor:
    return Editor(Path("models/demo"), "V4_TURBO_12")


def test_red_circles_become_blue_in_their_places(editor: Editor) -> None:
    right = recolour(editor, 0.9, pairs=6)
    assert right["blue"] >= 5 / 6
    assert right["place"] >= 5 / 6
    unchanged = recolour(editor, 0.1, pairs=6)
    assert (unchanged["blue"], unchanged["place"]) == (0, 1)


def test_a_letter_is_painted_into_a_corner(editor: Editor) -> None:
    right = paint_letters(editor, 6)
    assert right["kept"] == 1
    assert right["letter"] >= 4 / 6
