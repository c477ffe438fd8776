"""The images of edits on the broker."""

import logging
from dataclasses import replace

import nats.errors

from engine.request import SourceImage
from server.queue.connection.broker import Broker
from server.queue.files.chunks import ChunkedFiles
from server.queue.names import DAY, Stream

JOBS = "JOB_UPLOADS"
logger = logging.getLogger(__name__)


class Sources:
    """Holds the pixels of images, whose other fields travel in messages."""

    def __init__(self, files: ChunkedFiles) -> None:
        self._files = files

    async def put(self, name: str, source: SourceImage) -> None:
        """Waits while the broker is away."""
        await self._files.put(name, source.rgb + (source.mask or b""))

    async def get(self, name: str, source: SourceImage) -> SourceImage | None:
        """`source`, which has no pixels, with those that were stored; None if they are gone."""
        data = await self._files.get(name)
        if data is None:
            return None
        # A mask has one byte where `rgb` has three.
        end = len(data) if source.mask is None else len(data) * 3 // 4
        return replace(source, rgb=data[:end], mask=None if source.mask is None else data[end:])

    async def delete(self, name: str | None) -> None:
        """None does nothing. If it fails, the image expires."""
        if name is None:
            return
        try:
            await self._files.delete(name)
        except (nats.errors.Error, TimeoutError) as error:
            logger.warning("an uploaded image is not deleted: %s", error or type(error).__name__)


class JobSources(Sources):
    """Those of jobs, which may wait for `ttl` seconds."""

    def __init__(self, broker: Broker, ttl: float) -> None:
        self._broker = broker
        self._stream = Stream(JOBS, ("job-uploads.>",), max_age=ttl + DAY, max_per_subject=1)
        super().__init__(ChunkedFiles(broker, JOBS, "job-uploads"))

    async def start(self) -> None:
        """Call it once the broker is connected."""
        await self._broker.declare_stream(self._stream)


def without_pixels(source: SourceImage | None) -> SourceImage | None:
    """What a message holds of it."""
    return source and replace(source, rgb=b"", mask=None if source.mask is None else b"")
