"""The images of edits on their way to workers."""

from dataclasses import replace

from engine.request import EngineRequest
from server.queue import names
from server.queue.connection.broker import Broker
from server.queue.files.chunks import ChunkedFiles
from server.queue.files.sources import Sources, without_pixels


class Uploads:
    """Stores the image of each submission until its results are removed."""

    def __init__(self, broker: Broker, front: str) -> None:
        self._sources = Sources(ChunkedFiles(broker, names.UPLOADS.name, names.uploads(front)))
        self._sent: set[str] = set()

    async def send(self, reply: str, request: EngineRequest) -> EngineRequest:
        """The request as its message holds it. Call it with each publication: the broker may have lost the
        image. Raises APIError."""
        if request.source is None:
            return request
        self._sent.add(reply)
        await self._sources.put(names.submission_of(reply), request.source)
        return replace(request, source=without_pixels(request.source))

    async def remove(self, reply: str) -> None:
        """If that fails, the image expires."""
        if reply in self._sent:
            self._sent.discard(reply)
            await self._sources.delete(names.submission_of(reply))
