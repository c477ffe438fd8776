"""A file of an operator's that may change while the server runs."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from server.settings.config_error import ConfigError

T = TypeVar("T")
logger = logging.getLogger(__name__)


class WatchedFile(Generic[T]):
    """Its content as `read` has it, read again when the file changes.

    Content that cannot be read or used leaves the value as it was; the log has the reason. `read` raises
    ConfigError.
    """

    def __init__(self, file: Path, read: Callable[[Path], T], subject: str) -> None:
        """Raises ConfigError. `subject` is what the log calls it."""
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
            logger.info("read again: %s", self._subject)
        except ConfigError as error:
            logger.error("%s not read again, as they were: %s", self._subject, error)


def _version(file: Path) -> object:
    """Differs after a change of content, of permissions, and of the file in its place."""
    try:
        status = file.stat()
    except OSError as error:
        return str(error)
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
