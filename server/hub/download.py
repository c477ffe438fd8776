"""Downloads a repository of the Hugging Face Hub into the cache of its client."""

import io
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from tqdm import tqdm

from engine.errors import CheckpointError
from server.hub.repository import HubUnavailableError, Repository

PROGRESS_SECONDS = 10.0  # between two log lines
MAX_ERROR_CHARACTERS = 500
TRANSFER_BAR = "Downloading bytes"  # compressed bytes, of which the total is a guess
TRANSIENT = (408, 429)  # of the statuses below 500

logger = logging.getLogger(__name__)


def download(repository: Repository, without: Sequence[str] = (), only: Sequence[str] | None = None) -> Path:
    """Return the folder of the snapshot, `without` the files of these patterns, or with the files `only` that
    match these. Raises CheckpointError, or HubUnavailableError if a later attempt may succeed."""
    try:
        path = snapshot_download(
            repository.name,
            revision=repository.revision,
            ignore_patterns=list(without),
            allow_patterns=None if only is None else list(only),
            tqdm_class=ProgressLog,
        )
    except Exception as error:  # the client raises exceptions of several libraries
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:MAX_ERROR_CHARACTERS]
        kind = CheckpointError if _is_refusal(error) else HubUnavailableError
        raise kind(f"{repository}: no such folder, and the download from the hub failed: {reason}") from error
    logger.info("downloaded", extra={"fields": {"model": str(repository), "path": path}})
    return Path(path)


def _is_refusal(error: Exception) -> bool:
    """Whether the hub refused the request itself: no such repository or revision, or no permission."""
    response = getattr(error.__cause__ or error, "response", None)
    status = getattr(response, "status_code", 500)
    return isinstance(error, HFValidationError) or (400 <= status < 500 and status not in TRANSIENT)


class ProgressLog(tqdm):  # type: ignore[misc]
    """Logs the bytes written instead of drawing bars. The total is that of the files begun so far."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._next_line = 0.0
        super().__init__(*args, **{**options, "file": io.StringIO()})

    def display(self, *_: Any, **__: Any) -> bool:
        is_bytes = self.unit == "B" and self.desc != TRANSFER_BAR
        if is_bytes and self.total and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + PROGRESS_SECONDS
            logger.info("downloading", extra={"fields": {"bytes": self.n, "total_bytes": self.total}})
        return True
