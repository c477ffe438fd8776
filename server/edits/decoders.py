"""Processes that decode the images of clients, whose memory and processor time a file cannot exceed."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import BinaryIO

import server
from server.edits import decoder
from server.edits.placement import Placement
from server.schemas.errors import ApiError, invalid
from server.schemas.sizes import Size

PROCESSOR_SECONDS = 10  # of a session
START_SECONDS = 60
ANSWER_SECONDS = 60  # of a process that waits for a processor, or for memory
FOLDER = str(Path(server.__file__).parents[1])

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Opened:
    """An image whose header was read."""

    size: Size
    is_animated: bool


@dataclass(frozen=True, slots=True)
class Fitted:
    """`rgb` and `mask` as those of SourceImage."""

    rgb: bytes
    mask: bytes | None
    fingerprint: str


class Decoders:
    """At most `most` processes, each of which serves one session at a time. They start when needed."""

    def __init__(self, most: int) -> None:
        self._free = asyncio.Semaphore(most)
        self._idle: list[_Process] = []

    @asynccontextmanager
    async def session(self) -> AsyncIterator["Session"]:
        """Waits for a process. A process that fails is replaced."""
        async with self._free:
            process = self._take()
            if process is None:
                process = await asyncio.to_thread(_Process)
            try:
                await asyncio.to_thread(process.begin)
                yield Session(process)
            finally:
                if process.is_usable:
                    self._idle.append(process)
                else:
                    asyncio.get_running_loop().run_in_executor(None, process.kill)

    def _take(self) -> "_Process | None":
        """One that is alive, if there is any."""
        while self._idle:
            if (process := self._idle.pop()).is_alive:
                return process
        return None

    def close(self) -> None:
        for process in self._idle:
            process.kill()


class Session:
    """The images of one request in a decoder process."""

    def __init__(self, process: "_Process") -> None:
        self._process = process

    async def open(self, part: str, file: BinaryIO) -> Opened:
        """Read the header of an image. Raises ApiError 400 that names the part."""
        data = await asyncio.to_thread(file.read)
        answer, _ = await self._ask(part, {"do": "open", "part": part}, data)
        return Opened(Size(*answer["size"]), answer["is_animated"])

    async def fit(self, placement: Placement, mask_mode: str, feather: int, keeps_image: bool) -> Fitted:
        """Decode the image and its mask, and put them in their place. `keeps_image`: without a mask, only
        what is outside the image is painted. Raises ApiError 400."""
        place = (placement.size, placement.at, placement.box)
        asked = {"do": "fit", "place": place, "mode": mask_mode, "feather": feather}
        asked |= {"keeps_image": keeps_image}
        answer, blobs = await self._ask("image", asked)
        if answer["is_blank"]:
            raise invalid("`mask` paints nothing: no pixel of it is transparent or bright.", "mask")
        return Fitted(blobs[0], blobs[1] if len(blobs) > 1 else None, answer["fingerprint"])

    async def _ask(self, part: str, asked: decoder.Header, *blobs: bytes) -> decoder.Answer:
        try:
            answer, results = await asyncio.to_thread(self._process.ask, asked, *blobs)
        except (EOFError, OSError):
            raise _unreadable(part, await asyncio.to_thread(self._process.reason)) from None
        if "error" in answer:
            raise _unreadable(answer.get("part", part), answer["error"])
        return answer, results


class _Process:
    """A decoder process. Its methods block."""

    def __init__(self) -> None:
        """Starts it. Raises RuntimeError if it does not start."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", decoder.__name__, str(theirs.fileno()), str(PROCESSOR_SECONDS)],
                env=os.environ | {"PYTHONPATH": FOLDER},
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        self._connection = Connection(ours.detach())
        self.is_usable = False
        try:
            self._receive(START_SECONDS)
        except (EOFError, OSError):
            self.kill()
            raise RuntimeError("the process that decodes images does not start") from None

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def begin(self) -> None:
        """Forget the images of the last session."""
        with contextlib.suppress(OSError):  # it is gone; the first question finds out
            decoder.send(self._connection, {"do": "begin"})

    def ask(self, asked: decoder.Header, *blobs: bytes) -> decoder.Answer:
        """Raises EOFError or OSError."""
        self.is_usable = False
        decoder.send(self._connection, asked, *blobs)
        return self._receive(ANSWER_SECONDS)

    def _receive(self, seconds: float) -> decoder.Answer:
        if not self._connection.poll(seconds):
            raise TimeoutError
        answer = decoder.receive(self._connection)
        self.is_usable = True
        return answer

    def reason(self) -> str:
        """Why it did not answer."""
        self.kill()
        logger.warning("a decoder of images ended: %s", self._process.returncode)
        if self._process.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
            return f"takes more than {PROCESSOR_SECONDS} seconds to decode"
        return "cannot be decoded"

    def kill(self) -> None:
        """The connection closes with its last user, which may be a thread that still waits."""
        self._process.kill()
        self._process.wait()


def _unreadable(part: str, reason: str) -> ApiError:
    return invalid(f"`{part}` {reason}.", part, "invalid_image")
