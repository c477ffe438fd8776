"""The adapters of a server, read again when their files change."""

import asyncio
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from engine.config.model_config import ModelConfig
from engine.errors import CheckpointError
from server.adapters.adapter import Adapter, Weights
from server.adapters.offer import Offer
from server.adapters.source import Source
from server.settings.settings import Settings

# Between two looks at the files: ten times as long as a look took, within these bounds.
MIN_PAUSE, MAX_PAUSE = 1.0, 5.0

logger = logging.getLogger(__name__)


class Catalog:
    """Has the adapters of a folder or of an adapters file; without either it is empty."""

    def __init__(self, source: Source | None = None) -> None:
        self._source = source
        self._adapters: dict[str, Adapter] = {}
        self._error: str | None = None
        self._watching: asyncio.Task[None] | None = None

    @classmethod
    def of(cls, settings: Settings, model: ModelConfig) -> "Catalog":
        """Raises CheckpointError, or ConfigError if the folder or adapters file cannot be read."""
        if settings.adapters is None:
            return cls()
        return cls(Source(settings.adapters, model, settings.ignored_keys))

    async def start(self) -> None:
        """Read all files that there are, and look for changes from now on."""
        if self._source is not None and self._watching is None:
            await self._refresh(self._source)
            self._watching = asyncio.create_task(self._watch(self._source))

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()

    def offered_to(self, key: str) -> Offer:
        """The adapters that the API key of this name may use."""
        return Offer(self._adapters, key)

    def path(self, digest: str) -> Path | None:
        """The file with this SHA-256."""
        return next((weights.path for weights in self._weights if weights.digest == digest), None)

    @property
    def digests(self) -> tuple[str, ...]:
        """Of all files."""
        return tuple(sorted({weights.digest for weights in self._weights}))

    @property
    def _weights(self) -> Iterator[Weights]:
        return (each.weights for each in self._adapters.values() if each.weights)

    async def _watch(self, source: Source) -> None:
        pause = MIN_PAUSE
        while True:
            await asyncio.sleep(pause)
            started = time.monotonic()
            await self._refresh(source)
            pause = min(MAX_PAUSE, max(MIN_PAUSE, 10 * (time.monotonic() - started)))

    async def _refresh(self, source: Source) -> None:
        """If the folder or adapters file cannot be read, all adapters stay as they were."""
        before, error = self._adapters, None
        try:
            self._adapters = await asyncio.to_thread(source.read, before)
        except CheckpointError as unreadable:
            error = str(unreadable)
        if error and error != self._error:
            logger.error("cannot reload adapters, the previous ones stay in use: %s", error)
        self._error = error
        _log_changes(before, self._adapters)


def _log_changes(before: dict[str, Adapter], after: dict[str, Adapter]) -> None:
    for name in before.keys() - after.keys():
        logger.info("adapter removed", extra={"fields": {"adapter": name}})
    for name, adapter in after.items():
        if adapter != before.get(name):
            _log(adapter)


def _log(adapter: Adapter) -> None:
    fields: dict[str, object] = {"adapter": adapter.name}
    if adapter.error is not None:
        logger.error("adapter cannot be used", extra={"fields": fields | {"reason": adapter.error}})
    elif adapter.weights is not None:
        logger.info("adapter ready", extra={"fields": fields | {"digest": adapter.weights.digest}})
