"""`python -m server.edits.decoder FD SECONDS`: decodes images for the server that started it.

It ends when the server closes the socket FD. It may use MEMORY_BYTES, and SECONDS of a processor for each
session of an image, its mask and their result. A file that needs more time ends only this process.
"""

import json
import resource
import signal
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

from server.edits.pixels import ImageError, Picture, Place, compose, coverage

MEMORY_BYTES = 1 << 30
Header = dict[str, Any]
Answer = tuple[Header, list[bytes]]


def send(connection: Connection, header: Header, *blobs: bytes) -> None:
    connection.send_bytes(json.dumps({**header, "blobs": len(blobs)}).encode())
    for blob in blobs:
        connection.send_bytes(blob)


def receive(connection: Connection) -> Answer:
    """Raises EOFError or OSError if the other process is gone."""
    header: Header = json.loads(connection.recv_bytes())
    return header, [connection.recv_bytes() for _ in range(header["blobs"])]


class Session:
    """The pictures of one request, by part: `image` and perhaps `mask`."""

    def __init__(self) -> None:
        self._pictures: dict[str, Picture] = {}

    def answer(self, asked: Header, blobs: list[bytes]) -> Answer:
        """Raises ImageError."""
        if asked["do"] == "open":
            picture = self._pictures[asked["part"]] = Picture(blobs[0])
            return {"size": picture.size, "is_animated": picture.is_animated}, []
        return self._fit(asked, Place(*map(tuple, asked["place"])))

    def _fit(self, asked: Header, place: Place) -> Answer:
        pictures, self._pictures = self._pictures, {}
        mask, part = pictures.get("mask"), "mask"
        try:
            painted = coverage(mask, asked["mode"]) if mask else None
            part = "image"
            result = compose(pictures["image"], painted, place, asked["feather"], asked["keeps_image"])
        except ImageError as error:
            return {"error": str(error), "part": part}, []
        masks = [] if result.mask is None else [result.mask]
        return {"fingerprint": result.fingerprint, "is_blank": result.is_blank}, [result.rgb, *masks]


def serve(connection: Connection, processor_seconds: int) -> None:
    """Answer until the server is gone."""
    session = Session()
    while True:
        asked, blobs = receive(connection)
        if asked["do"] == "begin":
            session = Session()
            _allow(processor_seconds)
            continue
        try:
            answer, results = session.answer(asked, blobs)
        except (ImageError, MemoryError) as error:
            answer, results = {"error": str(error) or "needs more memory than a decoder may use"}, []
        send(connection, answer, *results)


def _allow(processor_seconds: int) -> None:
    """From now on; the signal after that ends the process."""
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + 1 + processor_seconds, most))


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the server too, which then drains
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    connection = Connection(int(sys.argv[1]))
    try:
        send(connection, {})
        serve(connection, int(sys.argv[2]))
    except (EOFError, OSError):
        pass


if __name__ == "__main__":
    main()
