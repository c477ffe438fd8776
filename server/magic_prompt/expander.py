"""Expands a prompt into a caption with at most two calls, and caches the result by prompt and size."""

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from server.captions.caption import Caption
from server.magic_prompt.upstreams import ExpansionUpstream
from server.upstream.client import UpstreamError

logger = logging.getLogger(__name__)
ATTEMPTS = 2
TokenIds = tuple[int, ...]
Key = tuple[str, int, int]
Read = Callable[[Caption], Awaitable[TokenIds]]


@dataclass(frozen=True, slots=True)
class Expansion:
    caption: Caption
    token_ids: TokenIds


class Expander:
    """Caches the `cache_entries` most recently used captions with their tokens, keyed by digest."""

    def __init__(self, upstream: ExpansionUpstream, cache_entries: int) -> None:
        self._upstream = upstream
        self._cache_entries = cache_entries
        self._cache: OrderedDict[bytes, Expansion] = OrderedDict()

    async def expand(self, key: Key, read: Read) -> Expansion:
        """Expand a prompt for a width and height. Raises UpstreamError after the last attempt.

        `read` tokenizes the caption and raises UpstreamError if it is too long.
        """
        digest = hashlib.sha256(repr(key).encode()).digest()
        expansion = self._cache.pop(digest, None) or await self._ask(key, read)
        self._cache[digest] = expansion
        while len(self._cache) > self._cache_entries:
            self._cache.popitem(last=False)
        return expansion

    async def _ask(self, key: Key, read: Read) -> Expansion:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                caption = await self._upstream.expand(*key)
                return Expansion(caption, await read(caption))
            except UpstreamError as error:
                logger.warning("magic prompt failed: %s", error, extra={"fields": {"attempt": attempt}})
                if attempt == ATTEMPTS:
                    raise
        raise AssertionError
