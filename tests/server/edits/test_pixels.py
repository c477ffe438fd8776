"""Files of every kind become RGB in the size of the result."""

import io
import os
from typing import Any

import pytest
from PIL import Image, ImageCms

from server.edits.pixels import Picture, Place, compose, coverage
from tests.server.edits.pictures import BLUE, RED, chunk, encoded, halves, hole, noise

SIDE = 64
# Those that Pillow can write.
MODES = {
    "png": ("RGB", "RGBA", "P", "L", "1", "LA"),
    "jpeg": ("RGB", "CMYK", "L", "1"),
    "webp": ("RGB", "RGBA", "P", "L", "LA"),
    "avif": ("RGB", "RGBA", "P", "L", "LA"),
}
WHOLE = Place((SIDE, SIDE), (0, 0, SIDE, SIDE), (0.0, 0.0, 1.0, 1.0))


def fitted(data: bytes, place: Place = WHOLE, mask: bytes | None = None, **options: Any) -> Image.Image:
    painted = None if mask is None else coverage(Picture(mask), "auto")
    result = compose(Picture(data), painted, place, options.get("feather", 0), options.get("keeps", False))
    image = Image.frombytes("RGB", place.size, result.rgb)
    image.info["mask"] = result.mask and Image.frombytes("L", place.size, result.mask)
    return image


def close(found: Any, wanted: tuple[int, ...], tolerance: int = 3) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize(("mode", "kind"), [(mode, kind) for kind, modes in MODES.items() for mode in modes])
def test_kinds_and_modes(mode: str, kind: str) -> None:
    image = halves() if mode in ("RGB", "RGBA", "P", "CMYK") else halves().convert("L")
    found = fitted(encoded(image.convert(mode), kind, quality=100))
    wanted = halves() if mode in ("RGB", "RGBA", "P", "CMYK") else image.convert("1" if mode == "1" else "L")
    for point in ((8, 8), (56, 56)):
        assert close(found.getpixel(point), wanted.convert("RGB").getpixel(point), 12)  # type: ignore[arg-type]


def test_pixels_of_an_image_in_its_size_are_kept() -> None:
    image = noise(SIDE, SIDE)
    assert fitted(encoded(image)).tobytes() == image.tobytes()
    assert fitted(encoded(image.convert("RGBA"))).tobytes() == image.tobytes()
    place = Place((96, 80), (16, 8, 80, 72), (0.0, 0.0, 1.0, 1.0))
    found = fitted(encoded(image), place, keeps=True)
    assert found.crop(place.at).tobytes() == image.tobytes()


def test_16_bits_keep_the_upper_ones() -> None:
    values = os.urandom(2 * SIDE * SIDE)
    image = Image.frombytes("I;16", (SIDE, SIDE), values)
    assert fitted(encoded(image)).getchannel(0).tobytes() == values[1::2]


@pytest.mark.parametrize(("turn", "corner"), [(1, RED), (2, BLUE), (3, BLUE), (6, RED), (8, BLUE)])
def test_orientation(turn: int, corner: tuple[int, ...]) -> None:
    """The upper left corner of red and blue halves, as a viewer shows it."""
    exif = Image.Exif()
    exif[0x0112] = turn
    for kind in ("jpeg", "png", "webp"):
        data = encoded(halves(128, 64), kind, exif=exif.tobytes(), quality=100)
        assert Picture(data).size == ((64, 128) if turn in (6, 8) else (128, 64))
        assert close(fitted(data).getpixel((4, 4)), corner, 12)


def test_a_profile_is_converted_to_srgb() -> None:
    """One whose red and blue are swapped; that of sRGB itself, and what is none, change nothing."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    named = srgb.replace("sRGB".encode("utf-16-be"), "mine".encode("utf-16-be"))
    swapped = named.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")
    red = Image.new("RGB", (SIDE, SIDE), RED)
    assert close(fitted(encoded(red, icc_profile=swapped)).getpixel((0, 0)), BLUE)
    for unchanged in (srgb, b"no profile"):
        assert fitted(encoded(red, icc_profile=unchanged)).getpixel((0, 0)) == RED


def test_transparent_pixels_are_white_and_painted() -> None:
    image = halves().convert("RGBA")
    image.putalpha(hole().getchannel("A"))
    found = fitted(encoded(image))
    assert (found.getpixel((4, 4)), found.getpixel((20, 20))) == ((255, 255, 255), RED)
    mask = found.info["mask"]
    assert (mask.getpixel((4, 4)), mask.getpixel((20, 20))) == (255, 0)
    opaque = halves().convert("RGBA")
    assert fitted(encoded(opaque)).info["mask"] is None


def test_masks() -> None:
    """Transparent, grey, and grey in a file with an opaque alpha channel."""
    grey = Image.new("L", (SIDE, SIDE), 0)
    grey.paste(255, (0, 0, 16, 16))
    for mask in (hole(), grey, grey.convert("RGBA")):
        found = fitted(encoded(halves()), mask=encoded(mask)).info["mask"]
        assert (found.getpixel((4, 4)), found.getpixel((20, 20))) == (255, 0)
        assert found.tobytes().count(255) == 256


def test_a_mask_of_another_size_is_scaled() -> None:
    mask = hole(128, 128, (0, 0, 32, 32))
    found = fitted(encoded(halves()), mask=encoded(mask)).info["mask"]
    assert (found.getpixel((8, 8)), found.getpixel((24, 24))) == (255, 0)


def test_feather_adds_a_soft_edge_outside() -> None:
    mask = encoded(hole(box=(0, 0, 16, SIDE)))
    found = fitted(encoded(halves()), mask=mask, feather=8).info["mask"]
    row = [found.getpixel((x, 32)) for x in range(SIDE)]
    assert row[:16] == [255] * 16
    assert row[24:] == [0] * 40
    assert row[16:24] == sorted(row[16:24], reverse=True)
    assert 0 < row[19] < 255
    assert set(fitted(encoded(halves()), mask=mask).info["mask"].tobytes()) == {0, 255}


@pytest.mark.parametrize("value", [1, 128, 254])
def test_feather_leaves_grey_parts_of_a_mask_as_they_are(value: int) -> None:
    grey = Image.new("L", (SIDE, SIDE), value)
    assert set(fitted(encoded(halves()), mask=encoded(grey), feather=8).info["mask"].tobytes()) == {value}
    grey.paste(255, (0, 0, 16, SIDE))
    found = fitted(encoded(halves()), mask=encoded(grey), feather=8).info["mask"]
    assert [found.getpixel((x, 32)) for x in (8, 40)] == [255, value]


def test_outside_the_image_its_edges_continue_and_are_painted() -> None:
    place = Place((128, 96), (32, 16, 96, 80), (0.0, 0.0, 1.0, 1.0))
    found = fitted(encoded(halves()), place, keeps=True)
    assert found.getpixel((0, 0)) == found.getpixel((0, 95)) == RED
    assert found.getpixel((127, 0)) == found.getpixel((127, 95)) == BLUE
    mask = found.info["mask"]
    assert (mask.getpixel((0, 0)), mask.getpixel((64, 48))) == (255, 0)
    assert fitted(encoded(halves()), place).info["mask"] is None


def test_animations_give_their_first_frame() -> None:
    frames = [Image.new("RGB", (SIDE, SIDE), colour) for colour in (RED, BLUE)]
    for kind in ("png", "webp"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
        assert Picture(data).is_animated
        assert fitted(data).getpixel((0, 0)) == RED
        assert not Picture(encoded(frames[0], kind)).is_animated


def test_a_large_jpeg_is_scaled_down_while_it_is_decoded() -> None:
    picture = Picture(encoded(halves(1024, 1024), "jpeg"))
    assert picture.pixels((SIDE, SIDE)).size == (128, 128)
    assert close(fitted(encoded(halves(1024, 1024), "jpeg")).getpixel((8, 8)), RED, 8)


def test_a_png_whose_exif_follows_its_pixels_is_not_decoded_when_it_is_opened() -> None:
    data = encoded(halves())
    end = data.rindex(b"IEND") - 4
    exif = Image.Exif()
    exif[0x0112] = 6
    assert Picture(data[:end] + chunk(b"eXIf", exif.tobytes()[6:]) + data[end:]).size == (SIDE, SIDE)


def test_no_metadata_is_kept() -> None:
    data = encoded(halves(), exif=b"Exif\0\0II*\0", pnginfo=None)
    assert "exif" not in Image.open(io.BytesIO(encoded(fitted(data)))).info
