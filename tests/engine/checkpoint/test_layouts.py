"""Keys, shapes and number of all tensors, with the published configuration on `meta`."""

from typing import Any

import torch
from diffusers import AutoencoderKLFlux2, Ideogram4Transformer2DModel
from torch import Tensor
from transformers import Qwen3VLConfig, Qwen3VLModel

from engine.checkpoint.layouts import DIT_SOURCES, expected_tensors, same_names
from engine.config.part_configs import TextConfig, TextEncoderConfig
from engine.models.dit import DiT, DiTConfig
from engine.models.text_encoder import TextEncoder
from engine.models.vae import VAE, VAEConfig
from engine.models.vae_encoder import VAEEncoder
from tests.engine.checkpoints import to_official

# Qwen3-VL 8B's text model.
TEXT_CONFIG = {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
}


def test_dit_in_the_diffusers_layout() -> None:
    dit, referee = _on_meta(DiT, DiTConfig()), _on_meta(Ideogram4Transformer2DModel)
    assert dict(expected_tensors(dit, DIT_SOURCES["diffusers"])) == _shapes(referee.state_dict())


def test_dit_in_the_official_layout() -> None:
    dit, referee = _on_meta(DiT, DiTConfig()), _on_meta(Ideogram4Transformer2DModel)
    expected = dict(expected_tensors(dit, DIT_SOURCES["official"]))
    assert expected == _shapes(to_official(referee.state_dict()))
    assert expected["layers.33.attention.qkv.weight"] == (3 * 4608, 4608)
    assert expected["layers.0.attention.o.weight"] == (4608, 4608)
    assert expected["layers.0.feed_forward.w1.weight"] == (12288, 4608)
    assert expected["layers.0.adaln_modulation.weight"] == (4 * 4608, 512)
    assert expected["llm_cond_proj.weight"] == (4608, 53248)


def test_dit_has_nine_billion_parameters() -> None:
    parameters = sum(parameter.numel() for parameter in _on_meta(DiT, DiTConfig()).parameters())
    referee = _on_meta(Ideogram4Transformer2DModel)
    assert parameters == sum(parameter.numel() for parameter in referee.parameters())
    assert round(parameters / 1e9, 1) == 9.3


def test_text_encoder() -> None:
    config = TextEncoderConfig(TextConfig(**TEXT_CONFIG))
    encoder = _on_meta(TextEncoder, config)
    referee = _on_meta(Qwen3VLModel, Qwen3VLConfig(text_config=TEXT_CONFIG))
    unread = ("visual.", "language_model.norm.")
    language = {key: value for key, value in referee.state_dict().items() if not key.startswith(unread)}
    assert dict(expected_tensors(encoder, same_names)) == _shapes(language)
    assert config.features_dim == DiTConfig().llm_features_dim


def test_vae() -> None:
    vae, referee = _on_meta(VAE, VAEConfig()), _on_meta(AutoencoderKLFlux2)
    unread = ("encoder.", "quant_conv.", "bn.")
    decoder = {key: value for key, value in referee.state_dict().items() if not key.startswith(unread)}
    assert dict(expected_tensors(vae, same_names)) == _shapes(decoder)
    assert vae.config.scale_factor == 8
    assert vae.config.batch_norm_eps == referee.config.batch_norm_eps


def test_vae_encoder() -> None:
    encoder, referee = _on_meta(VAEEncoder, VAEConfig()), _on_meta(AutoencoderKLFlux2)
    read = ("encoder.", "quant_conv.")
    expected = {key: value for key, value in referee.state_dict().items() if key.startswith(read)}
    assert dict(expected_tensors(encoder, same_names)) == _shapes(expected)


def _on_meta(kind: Any, *config: object) -> Any:
    with torch.device("meta"):
        return kind(*config)


def _shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}
