"""Image files in a local folder, served by this server."""

import asyncio
import contextlib
import errno
import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from server.settings.config_error import ConfigError
from server.store import names
from server.store.links import Links
from server.store.store import StoreError, StoreFullError

logger = logging.getLogger(__name__)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PART = ".part-"  # a file that is being written
GRACE_SECONDS = 60  # for a download that starts just before the end; for a part, after its last write


class FolderStore:
    """Several servers may share the folder."""

    sweep_seconds = 60.0

    def __init__(self, folder: Path, links: Links, max_bytes: int) -> None:
        """Creates the folder, not its parents. Raises ConfigError if it cannot be written."""
        self._folder = folder
        self._links = links
        self._max_bytes = max_bytes
        try:
            folder.mkdir(exist_ok=True)
            self._write_time()
            self.stored_bytes = self._sweep(0, 0)
        except OSError as error:
            raise ConfigError(f"--store: cannot write to {folder}: {error.strerror}") from None

    @property
    def is_full(self) -> bool:
        return self.stored_bytes >= self._max_bytes

    def path(self, name: str) -> Path:
        """Raises ValueError if it is not the name of a stored file."""
        if not names.is_name(name):
            raise ValueError("not the name of a stored file")
        return self._folder / name

    async def start(self) -> None:
        """Ready at once."""

    async def put(self, name: str, data: bytes) -> None:
        await asyncio.to_thread(self._put, self.path(name), data)
        self.stored_bytes += len(data)

    def _put(self, path: Path, data: bytes) -> None:
        part = f"{PART}{secrets.token_hex(8)}"
        try:
            self._write(part, data).replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                (self._folder / part).unlink()
            raise _failed("store an image", error) from None

    def _write(self, name: str, data: bytes) -> Path:
        path = self._folder / name
        path.write_bytes(data)
        return path

    async def get(self, name: str) -> bytes | None:
        try:
            return await asyncio.to_thread(self.path(name).read_bytes)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _failed("read an image", error) from None

    async def delete(self, name: str) -> None:
        try:
            await asyncio.to_thread(self.path(name).unlink, missing_ok=True)
        except OSError as error:
            raise _failed("delete an image", error) from None

    async def url(self, name: str, expires: int) -> str:
        return self._links.path(name, expires)

    async def sweep(self, now: float) -> None:
        try:
            self.stored_bytes = await asyncio.to_thread(lambda: self._sweep(now, self._write_time()))
        except OSError as error:
            raise _failed("delete expired images", error) from None

    def _write_time(self) -> float:
        """Now by the clock of the file system, which dates parts, and may differ from that of all servers."""
        part = self._write(f"{PART}{secrets.token_hex(8)}", b"")
        written = part.stat().st_mtime
        part.unlink()
        return written

    def _sweep(self, now: float, write_time: float) -> int:
        """Delete images by `now`, and parts by `write_time`. Returns the bytes that are left."""
        left = 0
        for entry in self._files():
            with contextlib.suppress(FileNotFoundError):  # another server has just deleted it
                if _age(entry, now, write_time) >= GRACE_SECONDS:
                    os.unlink(entry)
                else:
                    left += entry.stat().st_size
        return left

    def _files(self) -> Iterator[os.DirEntry[str]]:
        """Of this store; others in the folder are left alone."""
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if names.is_name(entry.name) or entry.name.startswith(PART):
                    yield entry


def _age(entry: os.DirEntry[str], now: float, write_time: float) -> float:
    """Seconds since an image expired, or since the last write to a part."""
    if entry.name.startswith(PART):
        return write_time - entry.stat().st_mtime
    return now - names.expiry(entry.name)


def _failed(action: str, error: OSError) -> StoreError:
    """Logs the reason."""
    logger.error("cannot %s: %s", action, error.strerror)
    return StoreFullError() if error.errno in FULL else StoreError()
