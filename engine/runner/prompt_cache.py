"""Cache of projected prompts, keyed by their tokens and bounded in bytes."""

from collections import OrderedDict

from torch import Tensor


class ConditioningCache:
    """Least recently used first out. Values are read-only (L, D) tensors."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.hits = 0
        self.misses = 0
        self._bytes = 0
        self._entries: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()

    def get(self, token_ids: tuple[int, ...]) -> Tensor | None:
        """Counts a hit or a miss."""
        text = self._entries.get(token_ids)
        if text is None:
            self.misses += 1
            return None
        self._entries.move_to_end(token_ids)
        self.hits += 1
        return text

    def put(self, token_ids: tuple[int, ...], text: Tensor) -> None:
        if token_ids in self._entries or text.nbytes > self.max_bytes:
            return
        self._entries[token_ids] = text
        self._bytes += text.nbytes
        while self._bytes > self.max_bytes:
            _, dropped = self._entries.popitem(last=False)
            self._bytes -= dropped.nbytes
