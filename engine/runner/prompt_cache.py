"""Cache of projected prompts, keyed by their tokens and bounded in bytes."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor


class ConditioningCache:
    """Least recently used first out. Values are read-only (L, D) tensors."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.hits = 0
        self.misses = 0
        self._bytes = 0
        self._entries: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()

    def __contains__(self, token_ids: tuple[int, ...]) -> bool:
        return token_ids in self._entries

    def find(self, prompts: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], Tensor]:
        """The cached ones of these prompts. Counts a miss for each missing prompt, and a hit for its
        repetitions."""
        found = {token_ids: self._entries[token_ids] for token_ids in prompts if token_ids in self}
        for token_ids in found:
            self._entries.move_to_end(token_ids)
        misses = len(set(prompts)) - len(found)
        self.misses += misses
        self.hits += len(prompts) - misses
        return found

    def put(self, token_ids: tuple[int, ...], text: Tensor) -> None:
        if token_ids in self._entries or text.nbytes > self.max_bytes:
            return
        self._entries[token_ids] = text
        self._bytes += text.nbytes
        while self._bytes > self.max_bytes:
            _, dropped = self._entries.popitem(last=False)
            self._bytes -= dropped.nbytes
