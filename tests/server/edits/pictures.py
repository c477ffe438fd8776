"""Image files for tests, honest and hostile."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

from PIL import Image

RED, BLUE, GREEN = (255, 0, 0), (0, 0, 255), (0, 255, 0)


def encoded(image: Image.Image, kind: str = "png", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def halves(width: int = 64, height: int = 64) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


def noise(width: int, height: int) -> Image.Image:
    return Image.effect_noise((width, height), 80).convert("RGB")


def hole(width: int = 64, height: int = 64, box: tuple[int, int, int, int] = (0, 0, 16, 16)) -> Image.Image:
    """OpenAI's mask: opaque, but for `box`."""
    mask = Image.new("RGBA", (width, height), "black")
    mask.paste((0, 0, 0, 0), box)
    return mask


def chunk(kind: bytes, data: bytes) -> bytes:
    """Of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, rows: bytes, *more: bytes) -> bytes:
    """A grey PNG file with `more` chunks and compressed `rows`, which may be fewer than `height`."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = (chunk(b"IHDR", header), *more, chunk(b"IDAT", rows), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def zeros(count: int) -> bytes:
    """Compressed, in little memory."""
    compressor, block = zlib.compressobj(9), bytes(1 << 20)
    parts = [compressor.compress(block) for _ in range(count >> 20)]
    return b"".join([*parts, compressor.compress(bytes(count % (1 << 20))), compressor.flush()])


def bomb() -> bytes:
    """49 megapixels in 48 kB."""
    return png_of(7000, 7000, zeros(7001 * 7000))


def bomb_of_text() -> bytes:
    """Compressed texts of 200 MB in all."""
    text = chunk(b"zTXt", b"a\0\0" + zeros(1 << 20))
    return png_of(8, 8, zeros(72), *[text] * 200)


def bomb_of_a_profile() -> bytes:
    return png_of(8, 8, zeros(72), chunk(b"iCCP", b"a\0\0" + zeros(64 << 20)))


def scans() -> bytes:
    """A progressive JPEG whose last scan is repeated thousands of times: 16 megapixels for each 30 bytes."""
    data = encoded(Image.new("L", (4000, 4000)), "jpeg", progressive=True)
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start:-2] * 5000 + data[-2:]


def polyglot() -> bytes:
    return encoded(halves()) + b"<html><script>alert(1)</script></html>PK\x03\x04"


def large_exif() -> bytes:
    exif = Image.Exif()
    exif[0x010E] = "x" * (4 << 20)
    return encoded(halves(), exif=exif.tobytes())


def broken_exif() -> bytes:
    return encoded(halves(), exif=b"Exif\0\0MM\0*" + b"\xff" * 60_000)


def side_of_65535() -> bytes:
    return png_of(65_535, 1, zeros(65_536))


SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
GIF = b"GIF89a" + bytes(40)
# Name, file, and what the message says about it; None if the file is used.
HOSTILE: dict[str, tuple[Callable[[], bytes], str | None]] = {
    "empty": (lambda: b"", "is not a readable"),
    "SVG": (lambda: SVG, "is not a readable"),
    "GIF": (lambda: GIF, "PNG, JPEG, WEBP"),
    "text": (lambda: b"hello" * 1000, "is not a readable"),
    "truncated PNG": (lambda: encoded(noise(256, 256))[:20_000], "damaged or truncated"),
    "truncated JPEG": (lambda: encoded(noise(256, 256), "jpeg")[:5000], "damaged or truncated"),
    "truncated WebP": (lambda: encoded(noise(256, 256), "webp")[:5000], "is "),
    "header alone": (lambda: encoded(noise(256, 256))[:33], "is "),
    "PNG with a HTML page behind it": (polyglot, None),
    "49 megapixels of zeros": (bomb, None),
    "10 gigapixels": (lambda: png_of(100_000, 100_000, zeros(1 << 20)), "100000x100000 pixels"),
    "one side of 65,535 pixels": (side_of_65535, "at most 16384 pixels"),
    "no pixels": (lambda: png_of(0, 0, zeros(1)), "is "),
    "compressed texts": (bomb_of_text, "is not a readable"),
    "a compressed profile": (bomb_of_a_profile, "is "),
    "EXIF of 4 MB": (large_exif, None),
    "malformed EXIF": (broken_exif, None),
    "JPEG of 5,000 scans": (scans, "seconds to decode"),
}
