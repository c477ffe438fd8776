"""The Qwen3-VL text model, tapped at thirteen layers. The vision tower is never built."""

from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen3VLTextConfig, Qwen3VLTextModel

from engine.work import drain

PUBLISHED_TAPS = (0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 35)


class TextEncoder(nn.Module):
    """Token ids to text features, `hidden * taps` wide, in float32."""

    def __init__(self, config: dict[str, Any]) -> None:
        """`config` is the checkpoint's; a model of other depth names its `tap_layers` there.

        Raises ValueError unless the taps are some of its layers, in order.
        """
        super().__init__()
        text_config = Qwen3VLTextConfig(**config["text_config"])
        self.taps: Sequence[int] = tuple(config.get("tap_layers", PUBLISHED_TAPS))
        layers = text_config.num_hidden_layers
        if beyond := [tap for tap in self.taps if tap not in range(layers)]:
            raise ValueError(f"tap_layers: {beyond[0]} is none of num_hidden_layers: {layers}")
        if not self.taps or list(self.taps) != sorted(set(self.taps)):
            raise ValueError(f"tap_layers: {self.taps} do not rise")
        self.language_model = Qwen3VLTextModel._from_config(text_config, attn_implementation="sdpa")

    @property
    def features_dim(self) -> int:
        return int(self.language_model.config.hidden_size) * len(self.taps)

    @property
    def device(self) -> torch.device:
        return self.language_model.embed_tokens.weight.device

    def forward(self, token_ids: Sequence[int]) -> Tensor:
        """One prompt's features (L, hidden * taps) as the layers leave them, taps innermost."""
        return drain(self.encode(token_ids))

    def encode(self, token_ids: Sequence[int]) -> Generator[None, None, Tensor]:
        """The same, layer by layer: whoever drives it may do other work in between."""
        model = self.language_model
        ids = torch.tensor([token_ids], device=self.device)
        hidden = model.embed_tokens(ids)
        positions = torch.arange(len(token_ids), device=self.device).view(1, 1, -1)
        rotary = model.rotary_emb(hidden, positions.expand(3, -1, -1))
        tapped = []
        for index, layer in enumerate(model.layers):
            hidden = layer(hidden, attention_mask=None, position_ids=positions[0], position_embeddings=rotary)
            if index in self.taps:
                tapped.append(hidden[0])
            yield
        return torch.stack(tapped, dim=-1).flatten(1).float()
