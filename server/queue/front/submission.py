"""One request on its way through the queue, as the front sees it."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from engine.client.in_flight import InFlightRequest
from engine.messages import ImageDone, RequestDone
from server.queue.wire import Done, Part, Progress


@dataclass(slots=True)
class _Image:
    """The parts of an image that have arrived, by offset."""

    parts: dict[int, bytes] = field(default_factory=dict)

    def add(self, part: Part) -> bytes | None:
        """All bytes, once the last one is there."""
        self.parts[part.offset] = part.data
        if sum(map(len, self.parts.values())) < 3 * part.width * part.height:
            return None
        return b"".join(self.parts[offset] for offset in sorted(self.parts))


@dataclass(eq=False, slots=True)
class Submission:
    """Puts results together, which may arrive twice and from two workers. `sequence` is the message's in the
    work stream, where it was `seen` last at this time. `publications` counts how often it was published."""

    reply: str
    in_flight: InFlightRequest
    sequence: int | None = None
    publications: int = 0
    seen: float = 0.0
    _images: dict[tuple[str, int], _Image] = field(default_factory=dict)

    def stored(self, sequence: int) -> None:
        """The work stream has it."""
        self.sequence, self.seen = sequence, time.monotonic()

    @property
    def is_in_queue(self) -> bool:
        """Whether the work stream should have it."""
        return self.sequence is not None and not self.in_flight.is_answered

    @property
    def missing(self) -> Iterator[int]:
        """Indices of the images that have not arrived."""
        request = self.in_flight.request
        return (index for index in range(len(request.seeds)) if index not in request.skip)

    def on_progress(self, progress: Progress) -> None:
        request_id = self.in_flight.request.request_id
        if progress.step is not None:
            self.in_flight.receive(replace(progress.step, request_id=request_id))
        if progress.preview is not None:
            self.in_flight.receive(replace(progress.preview, request_id=request_id))

    def on_part(self, worker: str, part: Part) -> None:
        if part.image_index in self.in_flight.request.skip:
            return
        key = worker, part.image_index
        rgb = self._images.setdefault(key, _Image()).add(part)
        if rgb is None:
            return
        self._images = {other: image for other, image in self._images.items() if other[1] != part.image_index}
        self.in_flight.receive(
            ImageDone(
                self.in_flight.request.request_id,
                part.image_index,
                part.seed,
                part.width,
                part.height,
                rgb,
                part.precision,
            )
        )

    def on_done(self, done: Done) -> bool:
        """Answer the request, unless images are still missing. Returns whether it is answered."""
        if done.image is not None:
            self.on_part("", done.image)
        error = done.exception()
        if error is not None:
            self.in_flight.fail(error)
        elif done.times is not None and not any(True for _ in self.missing):
            self.in_flight.receive(RequestDone(self.in_flight.request.request_id, done.times))
        return self.in_flight.is_answered
