"""Opens and converts image files of clients. Runs in a decoder process, with nothing but Pillow."""

import hashlib
import io
import math
from typing import NamedTuple

from PIL import Image, ImageChops, ImageCms, ImageFilter, features

FORMATS = ("PNG", "JPEG", "WEBP", *(("AVIF",) if features.check("avif") else ()))
MAX_SIDE = 16_384
MAX_PIXELS = 50_000_000
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)
SRGB = ImageCms.createProfile("sRGB")

if "AVIF" in FORMATS:
    from PIL import AvifImagePlugin

    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # each has a stack, which counts as memory
Image.MAX_IMAGE_PIXELS = None  # `_check_size` has its own limit, and names it


class ImageError(Exception):
    """The file cannot be used. The message continues the name of its part, such as "is truncated"."""


class Place(NamedTuple):
    """As `server.edits.placement.Placement`."""

    size: tuple[int, int]
    at: tuple[int, int, int, int]
    box: tuple[float, float, float, float]

    @property
    def sides(self) -> tuple[int, int]:
        left, top, right, bottom = self.at
        return right - left, bottom - top

    @property
    def least(self) -> tuple[int, int]:
        """The size of the whole image at which its visible part has as many pixels as are shown."""
        (width, height), (left, top, right, bottom) = self.sides, self.box
        return math.ceil(width / (right - left)), math.ceil(height / (bottom - top))


class Result(NamedTuple):
    """`rgb` and `mask` as those of `engine.request.SourceImage`. `is_blank`: the mask paints nothing."""

    rgb: bytes
    mask: bytes | None
    fingerprint: str
    is_blank: bool


class Picture:
    """An image file whose pixels are decoded on demand. `size` is that after its EXIF orientation."""

    def __init__(self, data: bytes) -> None:
        """Raises ImageError."""
        try:
            self._image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        except MemoryError:
            raise _too_large() from None
        except Exception:
            raise ImageError(f"is not a readable {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file") from None
        _check_size(*self._image.size)
        self._turn = _orientation(self._image)
        width, height = self._image.size
        self.size = (height, width) if self._turn in SIDEWAYS else (width, height)
        self.is_animated = self._image.format != "MPO" and bool(getattr(self._image, "is_animated", False))

    def pixels(self, wanted: tuple[int, int] | None = None) -> Image.Image:
        """The first frame in mode L, RGB, RGBA or CMYK. A JPEG is scaled down while it is decoded, to no less
        than `wanted`. Raises ImageError."""
        try:
            if wanted is not None and self._image.format in ("JPEG", "MPO"):
                self._image.draft(None, (max(wanted), max(wanted)))
            self._image.load()
            return _eight_bit(_turned(self._image, self._turn))
        except MemoryError:
            raise _too_large() from None
        except Exception:
            raise ImageError("is damaged or truncated") from None


def _check_size(width: int, height: int) -> None:
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        limit = f"at most {MAX_SIDE} pixels on each side and {MAX_PIXELS} in all"
        raise ImageError(f"has {width}x{height} pixels; {limit} are allowed")


def _too_large() -> ImageError:
    return ImageError("needs more memory than a decoder may use")


def _orientation(image: Image.Image) -> int:
    """1 unless the EXIF block says else. The block may hold anything."""
    try:
        exif = Image.Exif()
        exif.load(image.info["exif"])
        turn = exif.get(ORIENTATION)
    except Exception:
        return 1
    return turn if isinstance(turn, int) and turn in TURNS else 1


def _turned(image: Image.Image, turn: int) -> Image.Image:
    return image.transpose(TURNS[turn]) if turn in TURNS else image


def _eight_bit(image: Image.Image) -> Image.Image:
    """In mode L, RGB, RGBA or CMYK, with the colour profile in `info`."""
    converted = _converted(image)
    converted.info = {"icc_profile": image.info.get("icc_profile")}
    return converted


def _converted(image: Image.Image) -> Image.Image:
    match image.mode:
        case "I;16":
            return Image.frombytes("L", image.size, image.tobytes()[1::2])
        case "L" | "RGB" | "CMYK" if "transparency" not in image.info:
            return image
        case "1":
            return image.convert("L")
        case _:
            return image.convert("RGBA" if image.has_transparency_data else "RGB")


def coverage(mask: Picture, mode: str) -> Image.Image:
    """The part to paint, in mode L: 255 is painted. `mode` `alpha` reads transparency, `grey` brightness;
    `auto` reads transparency if there is any."""
    image = mask.pixels()
    if mode == "auto":
        mode = "grey" if _alpha(image) is None else "alpha"
    if mode == "grey":
        return image.convert("RGB").convert("L")
    return ImageChops.invert(image.convert("RGBA").getchannel("A"))


def compose(
    picture: Picture, coverage: Image.Image | None, place: Place, feather: int, keeps_image: bool
) -> Result:
    """Put the image in its place; `coverage` is that of its mask. Raises ImageError.

    What lies outside the image continues its edge. It is painted with what the mask says or, without one,
    with the transparent pixels of the image. Without either, everything is painted, or only the outside if
    `keeps_image`. `feather` is the width in pixels of the soft edge around what is painted in full.
    """
    image = _placed(picture.pixels(place.least), place, Image.Resampling.LANCZOS)
    alpha = _alpha(image)
    painted = None if alpha is None else ImageChops.invert(alpha)
    if coverage is not None:
        painted = _placed(coverage, place, Image.Resampling.BILINEAR)
    whole = _extended(_srgb(image, alpha), place)
    if painted is None and not (keeps_image and place.sides != place.size):
        return _result(whole, None)
    inside = Image.new("L", place.sides, 0) if painted is None else painted
    outside = Image.new("L", place.size, 255)
    outside.paste(inside, place.at[:2])
    return _result(whole, _feathered(outside, feather))


def _placed(image: Image.Image, place: Place, resampling: Image.Resampling) -> Image.Image:
    """The visible part in its size, with its profile. Without scaling, pixels stay as they are."""
    width, height = image.size
    box = (place.box[0] * width, place.box[1] * height, place.box[2] * width, place.box[3] * height)
    left, top, right, bottom = map(round, box)
    if (right - left, bottom - top) == place.sides:
        placed = image.crop((left, top, right, bottom))
    else:
        placed = image.resize(place.sides, resampling, box, reducing_gap=3.0)
    placed.info = image.info
    return placed


def _alpha(image: Image.Image) -> Image.Image | None:
    """None if no pixel is transparent."""
    alpha = image.getchannel("A") if image.mode == "RGBA" else None
    return None if alpha is None or alpha.getextrema() == (255, 255) else alpha


def _srgb(image: Image.Image, alpha: Image.Image | None) -> Image.Image:
    """In the colours of sRGB, on white where it is transparent. A profile that cannot be used is ignored."""
    opaque = image.convert("RGB") if image.mode == "RGBA" else image
    colours = _from_profile(opaque, image.info.get("icc_profile"))
    if alpha is None:
        return colours
    white = Image.new("RGB", image.size, "white")
    white.paste(colours, mask=alpha)
    return white


def _from_profile(image: Image.Image, data: bytes | None) -> Image.Image:
    if not data:
        return image.convert("RGB")
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        if "sRGB" in ImageCms.getProfileDescription(profile):
            return image.convert("RGB")  # a conversion would round
        converted = ImageCms.profileToProfile(image, profile, SRGB, outputMode="RGB")
        return converted or image.convert("RGB")
    except Exception:
        return image.convert("RGB")


def _extended(image: Image.Image, place: Place) -> Image.Image:
    """The image at its place, its edges drawn out to those of the picture."""
    (width, height), (left, top, right, bottom) = place.size, place.at
    if place.sides == place.size:
        return image
    canvas = Image.new("RGB", place.size)
    canvas.paste(image, (left, top))
    # The columns beside the image first, then the rows above and below all three.
    for column, start, end in ((left, 0, left), (right - 1, right, width)):
        if start < end:
            edge = canvas.crop((column, top, column + 1, bottom))
            canvas.paste(edge.resize((end - start, bottom - top)), (start, top))
    for row, start, end in ((top, 0, top), (bottom - 1, bottom, height)):
        if start < end:
            edge = canvas.crop((0, row, width, row + 1))
            canvas.paste(edge.resize((width, end - start)), (0, start))
    return canvas


def _feathered(mask: Image.Image, feather: int) -> Image.Image:
    """Adds a soft edge outside of what is painted in full. Grey parts stay as they are."""
    if feather < 2:
        return mask
    blur = ImageFilter.BoxBlur(feather / 2)
    full = mask.point(lambda value: 255 if value == 255 else 0)
    reached = full.filter(blur).point(lambda value: 255 if value else 0)
    return ImageChops.lighter(mask, reached.filter(blur))


def _result(image: Image.Image, mask: Image.Image | None) -> Result:
    rgb, painted = image.tobytes(), mask.tobytes() if mask else None
    fingerprint = hashlib.sha256(rgb + (painted or b"")).hexdigest()
    is_blank = mask is not None and mask.getextrema() == (0, 0)
    return Result(rgb, painted, fingerprint, is_blank)
