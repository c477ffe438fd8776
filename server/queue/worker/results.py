"""Sends the results of one request to its front."""

import asyncio
import logging
import time

from msgspec import structs
from nats.js.api import Header
from nats.js.errors import APIError, NotFoundError

from engine.messages import ImageDone, PreviewReady, StepDone
from server.queue import names
from server.queue.connection.broker import Broker
from server.queue.wire import Done, Part, Progress, Run, encode

PART_BYTES = 512 << 10
# At most one step of a request is reported in this time.
STEP_SECONDS = 0.02
WRONG_SEQUENCE = (10071, 10164)

logger = logging.getLogger(__name__)


class Results:
    """Images and the answer are stored; progress may be lost. `worker` is the id of this process."""

    def __init__(self, broker: Broker, worker: str, reply: str) -> None:
        self._broker = broker
        self._worker = worker
        self._reply = reply
        self._uploads: list[asyncio.Task[None]] = []
        self._last_image: Part | None = None
        self._progressed = time.monotonic()

    async def begin(self, deaths: int) -> None:
        """Store that this worker has the request, for the next one if it dies."""
        await self._broker.store(names.run(self._reply), encode(Run(worker=self._worker, deaths=deaths)))

    async def give_back(self, deaths: int) -> None:
        """Store that this worker has given it back."""
        await self._broker.store(names.run(self._reply), encode(Run(worker="", deaths=deaths)))

    async def step(self, step: StepDone) -> None:
        """Report it, unless another step was reported or the request began just before."""
        now = time.monotonic()
        if now - self._progressed >= STEP_SECONDS:
            self._progressed = now
            await self._send(Progress(step=step))

    async def preview(self, preview: PreviewReady) -> None:
        await self._send(Progress(preview=preview))

    def image(self, image: ImageDone, is_last: bool) -> None:
        """Store an image in parts. The last one is sent with the answer if it is one part."""
        size = min(PART_BYTES, self._broker.max_payload // 2)
        parts = [_part(image, offset, size) for offset in range(0, len(image.rgb), size)]
        if is_last and len(parts) == 1:
            self._last_image = parts[0]
        else:
            self._uploads.append(asyncio.create_task(self._upload(parts)))

    async def finish(self, done: Done) -> None:
        """Answer once all images are stored, unless another worker has answered."""
        await asyncio.gather(*self._uploads)
        headers = {Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value: "0"}
        answer = encode(structs.replace(done, image=self._last_image))
        try:
            await self._broker.store(names.done(self._reply), answer, headers)
        except APIError as error:
            if error.err_code not in WRONG_SEQUENCE:
                raise
            logger.info("%s was answered before", self._reply)

    def close(self) -> None:
        """Send nothing more."""
        for upload in self._uploads:
            upload.cancel()

    async def last(self, subject: str) -> bytes | None:
        """The last stored result with this subject."""
        try:
            found = await self._broker.jetstream.get_last_msg(names.RESULTS.name, subject, direct=True)
        except NotFoundError:
            return None
        return found.data

    async def _send(self, progress: Progress) -> None:
        if self._broker.is_up:
            await self._broker.client.publish(names.progress(self._reply), encode(progress))

    async def _upload(self, parts: list[Part]) -> None:
        for part in parts:
            subject = names.part(self._reply, self._worker, part.image_index, part.offset)
            await self._broker.store(subject, encode(part))


def _part(image: ImageDone, offset: int, size: int) -> Part:
    return Part(
        image_index=image.image_index,
        seed=image.seed,
        width=image.width,
        height=image.height,
        offset=offset,
        data=image.rgb[offset : offset + size],
    )
