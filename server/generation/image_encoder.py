"""RGB bytes to PNG, JPEG or WebP, in a few threads beside the event loop."""

import asyncio
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from PIL import Image

from server.generation import metadata
from server.schemas.images import OutputFormat

P = ParamSpec("P")
T = TypeVar("T")
MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
PREVIEW_FORMAT: OutputFormat = "jpeg"
PREVIEW_QUALITY = 80


class ImageEncoder:
    """At most `threads` images are encoded at once; the rest wait in the pool's queue."""

    def __init__(self, threads: int, png_compress_level: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="image")
        self._png_compress_level = png_compress_level

    async def encode(
        self,
        rgb: bytes,
        size: tuple[int, int],
        output_format: OutputFormat,
        quality: int,
        facts: dict[str, Any],
    ) -> bytes:
        """A whole file with `facts` in its metadata. `quality` 0..100 is of jpeg and webp."""
        return await self.run(self._encode, rgb, size, output_format, quality, facts)

    async def encode_preview(self, rgb: bytes, size: tuple[int, int]) -> bytes:
        """A small JPEG."""
        return await self.run(_save, rgb, size, PREVIEW_FORMAT, quality=PREVIEW_QUALITY)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Any work with image-sized bytes, which would stall the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: function(*args, **kwargs))

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _encode(
        self,
        rgb: bytes,
        size: tuple[int, int],
        output_format: OutputFormat,
        quality: int,
        facts: dict[str, Any],
    ) -> bytes:
        if output_format == "png":
            level = self._png_compress_level
            return _save(rgb, size, "png", compress_level=level, pnginfo=metadata.png_info(facts))
        if output_format == "jpeg":
            return _save(rgb, size, "jpeg", quality=quality, subsampling=0, exif=metadata.exif(facts))
        return _save(rgb, size, "webp", quality=quality, method=2, exif=metadata.exif(facts))


def _save(rgb: bytes, size: tuple[int, int], output_format: OutputFormat, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.frombytes("RGB", size, rgb).save(file, output_format, **options)
    return file.getvalue()
