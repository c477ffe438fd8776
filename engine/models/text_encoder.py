"""The Qwen3-VL text model, with features taken from thirteen layers. The vision tower is not built.

Follows `Qwen3VLTextModel` in transformers for prompts of text alone, where the three axes of its rotary
positions coincide. Shapes: L tokens of all prompts in one row, D width, H heads of K, G key and value heads.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from itertools import chain
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.config.part_configs import TextConfig, TextEncoderConfig
from engine.kernels.attention import Attend
from engine.kernels.norm import RMSNorm
from engine.kernels.packing import Rows
from engine.kernels.rotary import NormRotary
from engine.models.offloaded_layers import OffloadedLayers, offload
from engine.models.resumable import drain
from engine.models.rotary import frequencies, table


class Attention(nn.Module):
    """Causal self-attention inside each prompt; several query heads share a key and value head."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        width, self.head_dim = config.hidden_size, config.head_dim
        queries, keys = (n * self.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        self.q_proj = nn.Linear(width, queries, bias=False)
        self.k_proj = nn.Linear(width, keys, bias=False)
        self.v_proj = nn.Linear(width, keys, bias=False)
        self.o_proj = nn.Linear(queries, width, bias=False)
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        self.norm_rotary = NormRotary(heads, self.head_dim, config.rms_norm_eps)
        self.attend = Attend(heads, groups, self.head_dim, causal=True)

    def forward(self, x: Tensor, rotary: Tensor, prompts: Rows) -> Tensor:
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )  # (L, H, K), and G heads of k and v
        q = self.norm_rotary(q, self.q_norm.weight, rotary)
        k = self.norm_rotary(k, self.k_norm.weight, rotary)
        return self.o_proj(self.attend.packed(q, k, v, prompts, prompts).flatten(1))


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, rotary: Tensor, prompts: Rows) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotary, prompts)
        return x + self.mlp(self.post_attention_layernorm(x))


class LanguageModel(nn.Module):
    """Embedding and layers. The final norm is not built: no tap comes after it."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        # Not initialised: torch would import its compiler, in a second, to draw random numbers on `meta`.
        weight = torch.empty(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding.from_pretrained(weight)
        self.layers: nn.ModuleList | OffloadedLayers = nn.ModuleList(
            Layer(config) for _ in range(config.num_hidden_layers)
        )


class TextEncoder(nn.Module):
    """Token ids to text features, `hidden * taps` wide, in float32."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config.text_config
        self.taps: Sequence[int] = config.tap_layers
        self.language_model = LanguageModel(self.config)
        self._computes_on: torch.device | None = None

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._computes_on or self.weights_device

    @property
    def weights_device(self) -> torch.device:
        return self.language_model.embed_tokens.weight.device

    @property
    def is_fetching(self) -> bool:
        """Whether offloaded weights are being copied to the device."""
        layers = self.language_model.layers
        return isinstance(layers, OffloadedLayers) and layers.is_fetching

    def offload(self, device: torch.device) -> None:
        """Compute on a device with the weights where they are: in the memory of the host."""
        assert isinstance(self.language_model.layers, nn.ModuleList)
        self._computes_on = device
        self.language_model.layers = offload(self.language_model.layers, device)

    def forward(self, token_ids: Sequence[int]) -> Tensor:
        """One prompt's features (L, hidden * taps) as the layers leave them, taps innermost."""
        return drain(self.encode([token_ids]))

    def encode(self, prompts: Sequence[Sequence[int]]) -> Generator[None, None, Tensor]:
        """The features of several prompts, one after the other, like `forward`.

        Yields after each layer so that the caller can interleave other work.
        """
        model, rows = self.language_model, Rows.build([len(prompt) for prompt in prompts], self.device)
        token_ids = torch.tensor([*chain.from_iterable(prompts)], device=self.weights_device)
        x = model.embed_tokens(token_ids).to(self.device)
        rotary = self._rotary(rows.lens)
        tapped = []
        for index, layer in enumerate(cast(Iterable[Callable[..., Tensor]], model.layers)):
            x = layer(x, rotary, rows)
            if index in self.taps:
                tapped.append(x)
            yield
        return torch.stack(tapped, dim=-1).flatten(1).float()

    def _rotary(self, lens: list[int]) -> Tensor:
        """The rotary table of prompts of these lengths."""
        positions = torch.cat(
            [torch.arange(length, dtype=torch.float32, device=self.device) for length in lens]
        )
        return table(positions.outer(frequencies(self.config.head_dim, self.config.theta, self.device)))
