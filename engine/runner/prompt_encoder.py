"""Encodes prompts together and caches them."""

from collections.abc import Generator, Sequence

from torch import Tensor

from engine.checkpoint.loader import Pipeline
from engine.memory.bounds import PROMPT_CACHE_BYTES
from engine.models.resumable import calling
from engine.runner.device import Device
from engine.runner.prompt_cache import ConditioningCache

TokenIds = tuple[int, ...]


class PromptEncoder:
    """Runs the text encoder and the projection of its features."""

    def __init__(self, pipeline: Pipeline, device: Device) -> None:
        self._pipeline = pipeline
        self._device = device
        self.cache = ConditioningCache(PROMPT_CACHE_BYTES)

    def encode(self, prompts: Sequence[TokenIds]) -> Generator[None, None, dict[TokenIds, Tensor]]:
        """Projected prompts (L, D). Missing ones are encoded in one row. Yields between layers."""
        texts = self.cache.find(prompts)
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in texts]
        return texts | (yield from self._encode(missing)) if missing else texts

    def clear_cache(self) -> None:
        """Drop all cached prompts and reset the counters."""
        self.cache = ConditioningCache(PROMPT_CACHE_BYTES)

    def _encode(self, prompts: list[TokenIds]) -> Generator[None, None, dict[TokenIds, Tensor]]:
        layers = self._pipeline.text_encoder.encode(prompts)
        features = yield from calling(layers, self._device.synchronize)
        rows = self._pipeline.conditional.project_text(features).split([len(prompt) for prompt in prompts])
        # Copied, since a part would keep the whole row in memory.
        texts = {prompt: text.clone() for prompt, text in zip(prompts, rows, strict=True)}
        for prompt, text in texts.items():
            self.cache.put(prompt, text)
        return texts
