"""Files that are reloaded when they change."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from server.settings.config_error import ConfigError

T = TypeVar("T")
logger = logging.getLogger(__name__)


class WatchedFile(Generic[T]):
    """The parsed content of a file, reloaded when the file changes.

    `read` parses the file and raises ConfigError; if that happens during a reload, the error is logged and
    the previous value stays in use.
    """

    def __init__(self, file: Path, read: Callable[[Path], T], subject: str) -> None:
        """`subject` names the file in the log. Raises ConfigError."""
        self._file = file
        self._read = read
        self._subject = subject
        self._version = _version(file)
        self._value = read(file)

    def value(self) -> T:
        version = _version(self._file)
        if version != self._version:
            self._version = version
            self._reload()
        return self._value

    def _reload(self) -> None:
        try:
            self._value = self._read(self._file)
            logger.info("reloaded %s", self._subject)
        except ConfigError as error:
            logger.error("cannot reload %s, the previous version stays in use: %s", self._subject, error)


def _version(file: Path) -> object:
    """Changes with the content, the permissions and the inode of the file."""
    try:
        status = file.stat()
    except OSError as error:
        return str(error)
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
