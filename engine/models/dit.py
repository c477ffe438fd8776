"""The diffusion transformer, on a packed row of tokens: no padding, no mask.

Follows the published Ideogram 4 transformer (`Ideogram4Transformer2DModel` in diffusers).
Shapes: T tokens of all samples in one row, B samples, N image tokens, D width, H heads of K.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.config.part_configs import DiTConfig
from engine.kernels.attention import Attend
from engine.kernels.feed_forward import FeedForward
from engine.kernels.low_rank import LowRank
from engine.kernels.norm import RMSNorm
from engine.kernels.packing import Packing, Rows, spread
from engine.kernels.rotary import NormRotary
from engine.models.low_rank import BatchUpdates, BlockUpdates, adapted
from engine.models.rotary import frequencies, table

# Image positions start here on every axis, beyond those of the text.
IMAGE_POSITION_OFFSET = 65536


@dataclass(frozen=True, slots=True)
class Modulation:
    """The values that depend on t alone, for each of S times: `blocks` (S, layers, 4, D), `final` (S, D).

    The four are scale and gate of attention, scale and gate of the MLP; 1 + s and tanh are applied, and the
    weight of the norm that each multiplies.
    """

    blocks: Tensor
    final: Tensor

    def at(self, step: int) -> "Modulation":
        return Modulation(self.blocks[step : step + 1], self.final[step : step + 1])

    @staticmethod
    def stack(parts: list["Modulation"]) -> "Modulation":
        if len(parts) == 1:
            return parts[0]
        return Modulation(torch.cat([p.blocks for p in parts]), torch.cat([p.final for p in parts]))


class Attention(nn.Module):
    """Bidirectional self-attention inside each sample, with q/k norms and rotary positions."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width, self.head_dim = config.hidden_size, config.attention_head_dim
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.o = nn.Linear(width, width, bias=False)
        self.norm_q = RMSNorm(self.head_dim, eps=1e-5)
        self.norm_k = RMSNorm(self.head_dim, eps=1e-5)
        heads = config.num_attention_heads
        self.norm_rotary = NormRotary(2 * heads, self.head_dim, eps=1e-5)
        self.attend = Attend(heads, heads, self.head_dim)

    def heads(self, qkv: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split the projection (T, 3 D) into q, k, v (T, H, K), normed and rotated."""
        qkv = qkv.unflatten(-1, (3, -1, self.head_dim))  # (T, 3, H, K)
        weights = torch.stack((self.norm_q.weight, self.norm_k.weight)).unsqueeze(1)
        q, k = self.norm_rotary(qkv[:, :2], weights, rotary).unbind(1)
        return q, k, qkv[:, 2]


class Block(nn.Module):
    """Sandwich-normed attention and MLP, each scaled and gated by t."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.norm_eps
        self.attention = Attention(config)
        self.feed_forward = FeedForward(width, config.intermediate_size)
        self.attention_norm1 = RMSNorm(width, eps)
        self.attention_norm2 = RMSNorm(width, eps)
        self.ffn_norm1 = RMSNorm(width, eps)
        self.ffn_norm2 = RMSNorm(width, eps)
        self.adaln_modulation = nn.Linear(config.adaln_dim, 4 * width)

    def modulate(self, adaln: Tensor, updates: BlockUpdates | None = None) -> Tensor:
        """(S, adaln) -> (S, 4, D): scale and gate of attention, scale and gate of the MLP."""
        modulation = _updated(updates, "adaln", adaln, self.adaln_modulation(adaln))
        scale_msa, gate_msa, scale_mlp, gate_mlp = modulation.chunk(4, dim=-1)
        norms = (self.attention_norm1, self.attention_norm2, self.ffn_norm1, self.ffn_norm2)
        weights = torch.stack([norm.weight for norm in norms])
        factors = torch.stack((1 + scale_msa, gate_msa.tanh(), 1 + scale_mlp, gate_mlp.tanh()), dim=1)
        return factors * weights

    def before_attention(
        self,
        x: Tensor,
        modulation: Tensor,
        samples: Tensor | None,
        rotary: Tensor,
        updates: BlockUpdates | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x (T, D) to q, k, v (T, H, K); modulation (B, 4, D), samples (T,) as `Packing` has them."""
        scale_msa = spread(modulation[:, 0], samples)
        normed = self.attention_norm1.times(x, scale_msa)
        qkv = _updated(updates, "qkv", normed, self.attention.qkv(normed))
        return self.attention.heads(qkv, rotary)

    def after_attention(
        self,
        x: Tensor,
        attended: Tensor,
        modulation: Tensor,
        samples: Tensor | None,
        updates: BlockUpdates | None = None,
    ) -> Tensor:
        """x (T, D) and the attention's result (T, H, K) to the block's output (T, D)."""
        gate_msa, scale_mlp, gate_mlp = spread(modulation[:, 1:], samples).unbind(1)
        attended = attended.flatten(1)
        mixed = _updated(updates, "o", attended, self.attention.o(attended))
        x = torch.addcmul(x, gate_msa, self.attention_norm2.times(mixed, None))
        normed = self.ffn_norm1.times(x, scale_mlp)
        mixed = adapted(self.feed_forward, normed, updates)
        return torch.addcmul(x, gate_mlp, self.ffn_norm2.times(mixed, None))


def _updated(updates: BlockUpdates | None, matrix: str, x: Tensor, y: Tensor) -> Tensor:
    """The product y = x W^T of a matrix with its low-rank updates."""
    return y if updates is None else updates.add(matrix, x, y)


class BlockParts(NamedTuple):
    """The functions that run a block: `Block.before_attention` and `Block.after_attention`, or the compiled
    ones. Attention is a library kernel already."""

    before_attention: Callable[..., tuple[Tensor, Tensor, Tensor]]
    after_attention: Callable[..., Tensor]


PLAIN = BlockParts(Block.before_attention, Block.after_attention)


def compile_parts(backend: str | Callable[..., Any] = "inductor") -> BlockParts:
    """Compile the parts of a block. The number of tokens is dynamic: one compilation serves every prompt
    length."""
    BlockUpdates.leave_uncompiled()
    before, after = (cast(Any, torch.compile(part, dynamic=True, backend=backend)) for part in PLAIN)
    return BlockParts(before, after)


class TimeEmbedding(nn.Module):
    """t in [0, 1] -> sinusoids of 1e4 t (sines first) -> two-layer MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp_in = nn.Linear(width, width)
        self.mlp_out = nn.Linear(width, width)
        self.width = width

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        half = self.width // 2
        exponents = torch.arange(half, dtype=torch.float32, device=t.device) * -(math.log(1e4) / (half - 1))
        angles = (1e4 * t.float()).unsqueeze(-1) * exponents.exp()
        sinusoids = torch.cat((angles.sin(), angles.cos()), dim=-1).to(dtype)
        return self.mlp_out(F.silu(self.mlp_in(sinusoids)))


class FinalLayer(nn.Module):
    """LayerNorm without affine, scaled by t, to latent channels."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.hidden_size, config.in_channels)
        self.adaln_modulation = nn.Linear(config.adaln_dim, config.hidden_size)

    def modulate(self, adaln: Tensor) -> Tensor:
        # adaln went through SiLU once already; the published model applies it again here.
        return 1 + self.adaln_modulation(F.silu(adaln))

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.linear(F.layer_norm(x, x.shape[-1:], eps=1e-6) * scale)


class DiT(nn.Module):
    """Predicts the velocity (data minus noise) of each image token.

    Compute what is constant over a request's steps once and pass it to `forward`:
    `project_text`, `modulate` and `rotary`. `parts` run the blocks.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.input_proj = nn.Linear(config.in_channels, width)
        self.llm_cond_norm = RMSNorm(config.llm_features_dim, eps=1e-6)
        self.llm_cond_proj = nn.Linear(config.llm_features_dim, width)
        self.t_embedding = TimeEmbedding(width)
        self.adaln_proj = nn.Linear(width, config.adaln_dim)
        # Not initialised, as in the text encoder.
        self.embed_image_indicator = nn.Embedding.from_pretrained(torch.empty(2, width))
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_layer = FinalLayer(config)
        self.low_rank = LowRank(width)
        self.parts = PLAIN

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype. Quantised weights are cast to it at use."""
        return self.embed_image_indicator.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.embed_image_indicator.weight.device

    def project_text(self, features: Tensor) -> Tensor:
        """Text features (L, features) in float32 -> tokens (L, D) of the sequence."""
        normed = self.llm_cond_norm(features.to(self.dtype))
        return self.llm_cond_proj(normed) + self.embed_image_indicator.weight[0]

    def modulate(self, t: Tensor, updates: BatchUpdates | None = None) -> Modulation:
        """Times (S,) in [0, 1], 0 = noise -> the modulation of every block at each time.

        `updates` has one sample per time.
        """
        adaln = F.silu(self.adaln_proj(self.t_embedding(t, self.dtype)))
        offsets = range(len(t) + 1)
        each = (
            block.modulate(adaln, self._updates(updates, index, offsets))
            for index, block in enumerate(self._blocks())
        )
        blocks = torch.stack(list(each), dim=1)
        return Modulation(blocks, self.final_layer.modulate(adaln))

    def rotary(self, text_len: int, grid_h: int, grid_w: int, device: torch.device | str = "cpu") -> Tensor:
        """Rotary table of one sample, (2, L, 1, K/2) float32: cosines and sines, text first."""
        positions = position_ids(text_len, grid_h, grid_w, device)
        return rotary_table(positions, self.config)

    def _blocks(self) -> Iterator[Block]:
        yield from cast(Iterable[Block], self.layers)

    def forward(
        self,
        latents: Tensor,
        text: list[Tensor],
        modulation: Modulation,
        rotary: Tensor,
        packing: Packing,
        updates: BatchUpdates | None = None,
    ) -> Tensor:
        """Velocity (N, C) of the image tokens of all samples.

        latents: (N, C) float32, the samples' image tokens in a row; text: each sample's projected
        tokens (L_b, D), empty for the unconditional pass; rotary: (2, T, 1, K/2).
        """
        x = self._embed(latents, text, packing)
        for index, block in enumerate(self._blocks()):
            is_last = index == len(self.layers) - 1
            update = partial(self._updates, updates, index)
            x = self._run_block(block, x, modulation.blocks[:, index], rotary, packing, update, is_last)
        return self.final_layer(x, spread(modulation.final, packing.images.samples)).float()

    def _updates(
        self, updates: BatchUpdates | None, index: int, offsets: Sequence[int]
    ) -> BlockUpdates | None:
        return None if updates is None else updates.block(index, offsets, self.low_rank)

    def _embed(self, latents: Tensor, text: list[Tensor], packing: Packing) -> Tensor:
        image = self.input_proj(latents.to(self.dtype)) + self.embed_image_indicator.weight[1]
        return packing.interleave(text, image) if text else image

    def _run_block(
        self,
        block: Block,
        x: Tensor,
        by_time: Tensor,
        rotary: Tensor,
        packing: Packing,
        update: Callable[[Sequence[int]], BlockUpdates | None],
        is_last: bool,
    ) -> Tensor:
        """x (T, D) to the output of a block; of the last one, only for the image tokens (N, D)."""
        rows = packing.images if is_last else packing.tokens
        attended = self._attend(block, x, by_time, rotary, packing, rows, update(packing.tokens.offsets))
        x = packing.image_rows(x) if is_last else x
        return self.parts.after_attention(block, x, attended, by_time, rows.samples, update(rows.offsets))

    def _attend(
        self,
        block: Block,
        x: Tensor,
        by_time: Tensor,
        rotary: Tensor,
        packing: Packing,
        queries: Rows,
        update: BlockUpdates | None,
    ) -> Tensor:
        """The attention of a block. In a function of its own, so that q, k and v do not outlive it."""
        q, k, v = self.parts.before_attention(block, x, by_time, packing.tokens.samples, rotary, update)
        if queries is packing.images:  # only the text's keys and values are still needed
            q = packing.image_rows(q)
        return block.attention.attend.packed(q, k, v, queries, packing.tokens)


def position_ids(text_len: int, grid_h: int, grid_w: int, device: torch.device | str = "cpu") -> Tensor:
    """(L, 3) of t, h, w: text (i, i, i), then the image grid (0, row, column) past the offset."""
    text = torch.arange(text_len, device=device).unsqueeze(1).expand(-1, 3)
    rows = torch.arange(grid_h, device=device).repeat_interleave(grid_w)
    columns = torch.arange(grid_w, device=device).repeat(grid_h)
    image = torch.stack((torch.zeros_like(rows), rows, columns), dim=1) + IMAGE_POSITION_OFFSET
    return torch.cat((text, image))


def rotary_table(positions: Tensor, config: DiTConfig) -> Tensor:
    """Interleaved multi-axis RoPE: (L, 3) -> (2, L, 1, K/2)."""
    rates = frequencies(config.attention_head_dim, config.rope_theta, positions.device)
    angles = positions.float().unsqueeze(-1) * rates  # (L, 3, K/2)
    mixed = angles[:, 0].clone()
    for axis in (1, 2):
        taken = slice(axis, 3 * config.mrope_section[axis], 3)
        mixed[:, taken] = angles[:, axis, taken]
    return table(mixed)
