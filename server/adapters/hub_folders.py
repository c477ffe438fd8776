"""Adapters in repositories of the Hugging Face Hub, downloaded beside serving."""

import threading
import time
from pathlib import Path

from engine.errors import CheckpointError
from server.hub.repository import Repository

RETRY_SECONDS = 60


class HubFolders:
    """The folders of repositories. A failed download is tried again after a minute."""

    def __init__(self) -> None:
        self._downloads: dict[tuple[Repository, tuple[str, ...]], _Download] = {}

    def folder(self, repository: Repository, files: tuple[str, ...]) -> Path | None:
        """The folder with the files that match these patterns; None while it is downloaded. Raises the
        CheckpointError of `download` if that failed."""
        key = repository, files
        download = self._downloads.get(key)
        if download is None or download.is_due:
            download = self._downloads[key] = _Download(repository, files)
        if (error := download.error) is not None:
            raise type(error)(str(error))  # raising the same one again would extend its traceback
        return download.folder


class _Download:
    """Runs in a daemon thread, which does not delay the end of the process."""

    def __init__(self, repository: Repository, files: tuple[str, ...]) -> None:
        self.folder: Path | None = None
        self.error: CheckpointError | None = None
        self._ended = 0.0
        threading.Thread(target=self._run, args=(repository, files), daemon=True).start()

    @property
    def is_due(self) -> bool:
        """Whether it failed, a while ago."""
        return self.error is not None and time.monotonic() > self._ended + RETRY_SECONDS

    def _run(self, repository: Repository, files: tuple[str, ...]) -> None:
        from server.hub.download import download  # importing the Hub's client takes a second

        try:
            self.folder = download(repository, only=files)
        except CheckpointError as error:
            self._ended = time.monotonic()
            self.error = error
