"""Where an image lies in the picture that is made from it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.edits.placement import Fit, Margins, place
from server.schemas.errors import ApiError
from server.schemas.sizes import Size

WHOLE = (0.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("fit", "at", "box"),
    [
        ("cover", (0, 0, 100, 100), (0.25, 0.0, 0.75, 1.0)),
        ("contain", (0, 25, 100, 75), WHOLE),
        ("stretch", (0, 0, 100, 100), WHOLE),
    ],
)
def test_fits_of_a_wide_image(fit: str, at: tuple[int, ...], box: tuple[float, ...]) -> None:
    placed = place(Size(400, 200), Margins(), Size(100, 100), fit)  # type: ignore[arg-type]
    assert (placed.at, placed.box) == (at, box)


def test_margins_enlarge_the_canvas() -> None:
    placed = place(Size(64, 64), Margins(left=64, bottom=32), Size(128, 96), "cover")
    assert (placed.at, placed.box) == ((64, 0, 128, 64), WHOLE)


def test_at_scale_1_pixels_stay_whole() -> None:
    """Also where half a pixel is cut off on each side."""
    placed = place(Size(65, 64), Margins(), Size(64, 64), "cover")
    assert placed.at == (0, 0, 64, 64)
    assert (placed.box[0] * 65, placed.box[2] * 65) in ((0, 64), (1, 65))


@pytest.mark.parametrize(
    ("side", "image", "fit", "most"),
    [
        ("left", Size(10, 100), "cover", 108),
        ("right", Size(10, 100), "cover", 107),
        ("top", Size(100, 10), "cover", 108),
        ("bottom", Size(100, 10), "cover", 107),
        ("left", Size(1, 1), "contain", 126),
    ],
)
def test_an_image_that_is_cut_off(side: str, image: Size, fit: Fit, most: int) -> None:
    """The error names the side and the most that it may have."""
    with pytest.raises(ApiError, match=f"`expand.{side}` must be at most {most}") as caught:
        place(image, Margins(**{side: 8000}), Size(64, 64), fit)
    assert caught.value.param == f"expand.{side}"
    place(image, Margins(**{side: most}), Size(64, 64), fit)
    with pytest.raises(ApiError):
        place(image, Margins(**{side: most + 1}), Size(64, 64), fit)


sides = st.integers(1, 16_384)


@given(sides, sides, st.tuples(*[st.integers(0, 8192)] * 4), sides, sides)
def test_a_placement_is_inside(w: int, h: int, margins: tuple[int, ...], width: int, height: int) -> None:
    try:
        placed = place(Size(w, h), Margins(*margins), Size(width, height), "cover")
    except ApiError:
        return
    left, top, right, bottom = placed.at
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert 0 <= placed.box[0] < placed.box[2] <= 1
    assert 0 <= placed.box[1] < placed.box[3] <= 1
