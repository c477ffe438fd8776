"""A prompt to a caption: asked at most twice, and not again for the same prompt and shape."""

import logging
from collections import OrderedDict

from server.backends import BackendError
from server.captions.caption import Caption
from server.expansion.backend import ExpansionBackend

logger = logging.getLogger(__name__)
ATTEMPTS = 2
Key = tuple[str, int, int]


class Expander:
    """Keeps the last `cache_entries` captions."""

    def __init__(self, backend: ExpansionBackend, cache_entries: int) -> None:
        self._backend = backend
        self._cache_entries = cache_entries
        self._cache: OrderedDict[Key, Caption] = OrderedDict()

    async def expand(self, prompt: str, width: int, height: int) -> Caption:
        """Raises BackendError."""
        key = (prompt, width, height)
        caption = self._cache.pop(key, None) or await self._ask(*key)
        self._cache[key] = caption
        while len(self._cache) > self._cache_entries:
            self._cache.popitem(last=False)
        return caption

    async def _ask(self, prompt: str, width: int, height: int) -> Caption:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await self._backend.expand(prompt, width, height)
            except BackendError as error:
                logger.warning("magic prompt failed: %s", error, extra={"fields": {"attempt": attempt}})
                if attempt == ATTEMPTS:
                    raise
        raise AssertionError
