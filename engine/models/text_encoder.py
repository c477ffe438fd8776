"""The Qwen3-VL text model, with features taken from thirteen layers. The vision tower is not built.

Follows `Qwen3VLTextModel` in transformers for prompts of text alone, where the three axes of its rotary
positions coincide. L tokens, D width, H heads of K, G key and value heads.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from torch import Tensor, nn

from engine.kernels.attention import attend
from engine.kernels.norm import RMSNorm
from engine.models.rotary import apply_rotary, frequencies, table
from engine.work import drain

PUBLISHED_TAPS = (0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 35)


@dataclass(frozen=True, slots=True)
class TextConfig:
    """The checkpoint's `text_config`; the defaults are the published model's."""

    vocab_size: int = 151936
    hidden_size: int = 4096
    intermediate_size: int = 12288
    num_hidden_layers: int = 36
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int = 128
    rms_norm_eps: float = 1e-6
    hidden_act: Literal["silu"] = "silu"
    attention_bias: Literal[False] = False
    rope_theta: float = 5_000_000
    rope_scaling: dict[str, Any] | None = None  # its name before transformers 5
    rope_parameters: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kind = ((self.rope_scaling or {}) | self.rope_parameters).get("rope_type", "default")
        if kind != "default":
            raise ValueError(f"rope_type: {kind!r}, only 'default' is known")

    @property
    def theta(self) -> float:
        return float(self.rope_parameters.get("rope_theta", self.rope_theta))


class Attention(nn.Module):
    """Causal self-attention; several query heads share a key and value head."""

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

    def forward(self, x: Tensor, rotary: Tensor) -> Tensor:
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )  # (L, H, K), and G heads of k and v
        q, k = apply_rotary(self.q_norm(q), rotary), apply_rotary(self.k_norm(k), rotary)
        return self.o_proj(attend(q, k, v, causal=True).flatten(1))


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

    def forward(self, x: Tensor, rotary: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotary)
        return x + self.mlp(self.post_attention_layernorm(x))


class LanguageModel(nn.Module):
    """Embedding and layers. The final norm is not built: no tap comes after it."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))


class TextEncoder(nn.Module):
    """Token ids to text features, `hidden * taps` wide, in float32."""

    def __init__(self, config: dict[str, Any]) -> None:
        """`config` is the checkpoint's; a model of another depth declares its `tap_layers` there.

        Raises ValueError unless the taps are some of its layers, in order.
        """
        super().__init__()
        self.config = TypeAdapter(TextConfig).validate_python(config["text_config"])
        self.taps: Sequence[int] = tuple(config.get("tap_layers", PUBLISHED_TAPS))
        layers = self.config.num_hidden_layers
        if beyond := [tap for tap in self.taps if tap not in range(layers)]:
            raise ValueError(f"tap_layers: {beyond[0]} is none of num_hidden_layers: {layers}")
        if not self.taps or list(self.taps) != sorted(set(self.taps)):
            raise ValueError(f"tap_layers: {self.taps} do not rise")
        self.language_model = LanguageModel(self.config)

    @property
    def features_dim(self) -> int:
        return self.config.hidden_size * len(self.taps)

    @property
    def device(self) -> torch.device:
        return self.language_model.embed_tokens.weight.device

    def forward(self, token_ids: Sequence[int]) -> Tensor:
        """One prompt's features (L, hidden * taps) as the layers leave them, taps innermost."""
        return drain(self.encode(token_ids))

    def encode(self, token_ids: Sequence[int]) -> Generator[None, None, Tensor]:
        """Like `forward`, yielding after each layer so that the caller can interleave other work."""
        model, config = self.language_model, self.config
        x = model.embed_tokens(torch.tensor(token_ids, device=self.device))
        positions = torch.arange(len(token_ids), dtype=torch.float32, device=self.device)
        rotary = table(positions.outer(frequencies(config.head_dim, config.theta, self.device)))
        tapped = []
        for index, layer in enumerate(model.layers):
            x = layer(x, rotary)
            if index in self.taps:
                tapped.append(x)
            yield
        return torch.stack(tapped, dim=-1).flatten(1).float()
