"""Encodes RGB to PNG, JPEG or WebP, in a few threads beside the event loop."""

import asyncio
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from PIL import Image

from engine.config.model_config import ModelConfig
from engine.messages import ImageDone, PreviewReady
from server.generation import metadata
from server.generation.parameters import Parameters
from server.schemas.images import OutputFormat
from server.settings.settings import Settings

P = ParamSpec("P")
T = TypeVar("T")
MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
PREVIEW_FORMAT: OutputFormat = "jpeg"
PREVIEW_QUALITY = 80


class ImageEncoder:
    """Encodes at most `--image-threads` images at once; the others wait in a queue."""

    def __init__(self, settings: Settings, model: Callable[[], ModelConfig]) -> None:
        """`model` returns the served one, which a front without weights learns from workers."""
        self._pool = ThreadPoolExecutor(settings.image_threads, thread_name_prefix="image")
        self._png_compress_level = settings.png_compress_level
        self._embed_prompt = settings.embed_prompt
        self._model = model

    async def encode(self, image: ImageDone, parameters: Parameters) -> bytes:
        """A file with the parameters and the seed in its metadata."""
        facts = metadata.describe(parameters, self._model(), self._embed_prompt) | {"seed": image.seed}
        return await self.run(self._encode, image, parameters, facts)

    async def encode_preview(self, preview: PreviewReady) -> bytes:
        """A small JPEG without metadata."""
        return await self.run(_save, preview, PREVIEW_FORMAT, quality=PREVIEW_QUALITY)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run other work on image files in the same threads."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: function(*args, **kwargs))

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _encode(self, image: ImageDone, parameters: Parameters, facts: dict[str, Any]) -> bytes:
        if parameters.output_format == "png":
            level = self._png_compress_level
            return _save(image, "png", compress_level=level, pnginfo=metadata.png_info(facts))
        options: dict[str, Any] = {"quality": parameters.compression, "exif": metadata.exif(facts)}
        if parameters.output_format == "jpeg":
            return _save(image, "jpeg", subsampling=0, **options)
        return _save(image, "webp", method=2, **options)


def _save(image: ImageDone | PreviewReady, output_format: OutputFormat, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.frombytes("RGB", (image.width, image.height), image.rgb).save(file, output_format, **options)
    return file.getvalue()
