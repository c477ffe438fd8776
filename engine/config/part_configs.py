"""The `config.json` of each part of a checkpoint: bounds, and consistency between parts. Torch-free.

The published model's values are the defaults. Unknown keys are ignored.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field

from engine.config.files import read_as
from engine.config.part_folders import PartFolders
from engine.errors import CheckpointError

T = TypeVar("T")

PUBLISHED_TAPS = (0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 35)

# Upper bounds far above any model, which limit what a config can allocate.
Count = Annotated[int, Field(ge=1, le=1024)]
Width = Annotated[int, Field(ge=1, le=1 << 20)]
Length = Annotated[int, Field(ge=1, le=1 << 24)]
Channels = Annotated[tuple[Annotated[int, Field(ge=1, le=1 << 14)], ...], Field(min_length=1, max_length=8)]
Epsilon = Annotated[float, Field(ge=1e-12, le=0.1, allow_inf_nan=False)]
Colour = Annotated[float, Field(ge=-1e4, le=1e4, allow_inf_nan=False)]
Theta = Annotated[float, Field(gt=1, le=1e12, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class DiTConfig:
    """`transformer/config.json`, `unconditional_transformer/config.json`."""

    in_channels: Width = 128
    num_layers: Count = 34
    attention_head_dim: Width = 256
    num_attention_heads: Count = 18
    intermediate_size: Width = 12288
    adaln_dim: Width = 512
    llm_features_dim: Length = 53248
    rope_theta: Theta = 5_000_000
    mrope_section: tuple[Count, Count, Count] = (24, 20, 20)
    norm_eps: Epsilon = 1e-5

    def __post_init__(self) -> None:
        _check_head_dim("attention_head_dim", self.attention_head_dim)
        if not 4 <= self.hidden_size <= 1 << 20:
            raise ValueError(
                f"attention_head_dim: {self.attention_head_dim}, times num_attention_heads: "
                f"{self.num_attention_heads}, must be a width from 4 to {1 << 20}"
            )
        frequencies = self.attention_head_dim // 2
        if max(sum(self.mrope_section), 3 * max(self.mrope_section[1:])) > frequencies:
            raise ValueError(
                f"mrope_section: {self.mrope_section} exceeds the head's {frequencies} frequencies"
            )

    @property
    def hidden_size(self) -> int:
        return self.attention_head_dim * self.num_attention_heads


@dataclass(frozen=True, slots=True)
class RopeParameters:
    rope_type: Literal["default"] = "default"
    rope_theta: Theta | None = None


@dataclass(frozen=True, slots=True)
class TextConfig:
    """`text_config` of `text_encoder/config.json`."""

    vocab_size: Length = 151936
    hidden_size: Width = 4096
    intermediate_size: Width = 12288
    num_hidden_layers: Count = 36
    num_attention_heads: Count = 32
    num_key_value_heads: Count = 8
    head_dim: Count = 128
    rms_norm_eps: Epsilon = 1e-6
    max_position_embeddings: Annotated[int, Field(ge=1)] = 262144
    hidden_act: Literal["silu"] = "silu"
    attention_bias: Literal[False] = False
    rope_theta: Theta = 5_000_000
    rope_scaling: RopeParameters | None = None  # its name before transformers 5
    rope_parameters: RopeParameters = field(default_factory=RopeParameters)

    def __post_init__(self) -> None:
        _check_head_dim("head_dim", self.head_dim)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads: {self.num_key_value_heads} does not divide num_attention_heads, "
                f"{self.num_attention_heads}"
            )

    @property
    def theta(self) -> float:
        return self.rope_parameters.rope_theta or self.rope_theta


@dataclass(frozen=True, slots=True)
class TextEncoderConfig:
    """`text_encoder/config.json`. A model of another depth lists the tapped layers in `tap_layers`."""

    text_config: TextConfig
    tap_layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = PUBLISHED_TAPS

    def __post_init__(self) -> None:
        layers = self.text_config.num_hidden_layers
        if beyond := [tap for tap in self.tap_layers if tap >= layers]:
            raise ValueError(f"tap_layers: {beyond[0]} is not below num_hidden_layers, {layers}")
        if list(self.tap_layers) != sorted(set(self.tap_layers)):
            raise ValueError(f"tap_layers: {self.tap_layers} is not strictly increasing")

    @property
    def features_dim(self) -> int:
        return self.text_config.hidden_size * len(self.tap_layers)


@dataclass(frozen=True, slots=True)
class VAEConfig:
    """`vae/config.json`."""

    latent_channels: Annotated[int, Field(ge=1, le=1 << 14)] = 32
    out_channels: Literal[3] = 3
    block_out_channels: Channels = (128, 256, 512, 512)
    decoder_block_out_channels: Channels | None = None
    layers_per_block: Annotated[int, Field(ge=1, le=64)] = 2
    norm_num_groups: Annotated[int, Field(ge=1)] = 32
    mid_block_add_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    batch_norm_eps: Epsilon = 1e-4
    patch_size: tuple[Literal[2], Literal[2]] = (2, 2)
    act_fn: Literal["silu"] = "silu"

    def __post_init__(self) -> None:
        for channels in self.decoder_channels:
            if channels % self.norm_num_groups:
                raise ValueError(
                    f"norm_num_groups: {self.norm_num_groups} does not divide {channels} channels"
                )

    @property
    def scale_factor(self) -> int:
        """Pixels per latent, along each side."""
        return int(2 ** (len(self.decoder_channels) - 1))

    @property
    def pixels_per_token(self) -> int:
        """Pixels per token, along each side."""
        return self.patch_size[0] * self.scale_factor

    @property
    def token_channels(self) -> int:
        """Channels of a token, which is a patch of latents."""
        return self.patch_size[0] * self.patch_size[1] * self.latent_channels

    @property
    def decoder_channels(self) -> tuple[int, ...]:
        return self.decoder_block_out_channels or self.block_out_channels


@dataclass(frozen=True, slots=True)
class LatentRGBConfig:
    """`vae/latent_rgb.json`: a linear map from latents to RGB in [-1, 1]."""

    weight: list[tuple[Colour, Colour, Colour]]
    bias: tuple[Colour, Colour, Colour]


@dataclass(frozen=True, slots=True)
class PartConfigs:
    """Configs of all parts, checked against each other.

    `unconditional` is None if `transformer` runs both passes.
    """

    text_encoder: TextEncoderConfig
    transformer: DiTConfig
    unconditional: DiTConfig | None
    vae: VAEConfig

    @classmethod
    def read(cls, folders: PartFolders) -> "PartConfigs":
        """Read and check the configs of all parts. Raises CheckpointError."""
        configs = cls(
            text_encoder=read_config(folders.text_encoder, TextEncoderConfig),
            transformer=read_config(folders.transformer, DiTConfig),
            unconditional=_read_unconditional(folders.unconditional),
            vae=read_config(folders.vae, VAEConfig),
        )
        _check_widths(folders.transformer, configs.transformer, configs)
        read_latent_rgb(folders.vae, configs.vae)
        if folders.unconditional and configs.unconditional:
            _check_widths(folders.unconditional, configs.unconditional, configs)
        return configs


def read_config(folder: Path, kind: type[T]) -> T:
    """Read `config.json` of `folder`. Raises CheckpointError naming file and key."""
    return read_as(kind, folder / "config.json")


def read_latent_rgb(folder: Path, config: VAEConfig) -> LatentRGBConfig | None:
    """Read the optional `latent_rgb.json` of `folder`. Raises CheckpointError naming file and key."""
    file = folder / "latent_rgb.json"
    if not os.path.lexists(file):
        return None
    declared = read_as(LatentRGBConfig, file)
    if len(declared.weight) != config.latent_channels:
        raise CheckpointError(
            f"{file}: weight: {len(declared.weight)} rows, but vae/config.json: latent_channels is "
            f"{config.latent_channels}"
        )
    return declared


def _read_unconditional(folder: Path | None) -> DiTConfig | None:
    if folder is None:
        return None
    if not os.path.isdir(folder):
        raise CheckpointError(f"{folder}: not a folder")
    return read_config(folder, DiTConfig)


def _check_widths(folder: Path, dit: DiTConfig, configs: PartConfigs) -> None:
    """Raises CheckpointError unless the transformer in `folder` fits the text encoder and the VAE."""
    features, channels = configs.text_encoder.features_dim, configs.vae.token_channels
    file = folder / "config.json"
    if dit.llm_features_dim != features:
        raise CheckpointError(
            f"{file}: llm_features_dim: {dit.llm_features_dim}, but text_encoder/config.json: hidden_size "
            f"times tap_layers is {features}"
        )
    if dit.in_channels != channels:
        raise CheckpointError(
            f"{file}: in_channels: {dit.in_channels}, but vae/config.json: latent_channels times patch_size "
            f"is {channels}"
        )


def _check_head_dim(key: str, head_dim: int) -> None:
    if head_dim % 2:
        raise ValueError(f"{key}: {head_dim} is odd; rotary embeddings need an even number")
