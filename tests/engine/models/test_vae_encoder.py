"""The VAE's encoder compared with that of diffusers, and encoding in strips with encoding at once."""

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLFlux2
from torch import Tensor

from engine.checkpoint.loader import load_vae_encoder
from engine.config.part_configs import VAEConfig
from engine.models.resumable import drain
from engine.models.vae_encoder import Encoder, VAEEncoder, encode_strips
from tests.engine.checkpoints import VAE_CONFIG, randomise
from tests.engine.memory import PeakMemory

# Overrides of the fixture's configuration: the published widths' order, and each switch a file may have.
CONFIGS: tuple[dict[str, Any], ...] = (
    {},
    {"block_out_channels": (64, 32, 16, 8), "norm_num_groups": 4, "layers_per_block": 1},
    {"decoder_block_out_channels": (8, 32, 64, 64)},
    {"use_quant_conv": False, "mid_block_add_attention": False, "latent_channels": 8},
)


@pytest.fixture(params=CONFIGS, ids=lambda overrides: ",".join(overrides) or "plain")
def referee(request: pytest.FixtureRequest) -> Any:
    """diffusers' VAE with random weights."""
    return randomise(AutoencoderKLFlux2(**VAE_CONFIG | request.param), seed=7)


@pytest.fixture
def encoder(referee: Any, tmp_path: Any) -> VAEEncoder:
    referee.save_pretrained(tmp_path)
    loaded = load_vae_encoder(tmp_path, "cpu", torch.float32)
    assert loaded is not None
    return loaded


@torch.inference_mode()
def test_latents_are_diffusers(encoder: VAEEncoder, referee: Any) -> None:
    """The mean of the posterior."""
    pixels = _pixels(80, 112)
    expected = referee.encode(pixels).latent_dist.mode()
    assert expected.std() > 0.01
    torch.testing.assert_close(encoder.encode(pixels), expected, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("strip_elements", [1, 1 << 13])
def test_strips_are_the_whole(encoder: VAEEncoder, strip_elements: int) -> None:
    """Strips of one row, and of several rows that do not divide the height; equal up to float rounding."""
    pixels = _pixels(88, 112)
    whole = drain(encoder.encoder.encode_whole(pixels))
    assert (whole - drain(encode_strips(encoder.encoder, pixels, strip_elements))).abs().max() < 1e-4


@torch.inference_mode()
def test_images_encoded_together_and_only_large_ones_in_strips(
    encoder: VAEEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    striped: list[int] = []

    def spy(*args: Any) -> Any:
        striped.append(1)
        return encode_strips(*args)

    monkeypatch.setattr("engine.models.vae_encoder.encode_strips", spy)
    monkeypatch.setattr(VAEEncoder, "max_whole_area", 48 * 64)
    images = torch.cat([_pixels(48, 64, seed) for seed in (1, 2)])
    alone = torch.cat([encoder.encode(each) for each in images.split(1)])
    assert not striped
    assert (encoder.encode(images) - alone).abs().max() < 1e-4
    assert striped == [1]


def test_the_largest_size_that_is_encoded_at_once() -> None:
    assert VAEEncoder.max_whole_area == 1024 * 1024


@torch.inference_mode()
def test_the_largest_image_takes_less_memory_in_strips() -> None:
    """The published VAE at 2048 x 2048 in bfloat16, on `meta`; the widest activation has 128 channels."""
    with torch.device("meta"):
        encoder = Encoder(VAEConfig()).bfloat16()
    widest = 128 * 2048 * 2048 * 2  # bytes
    pixels = torch.empty(1, 3, 2048, 2048, dtype=torch.bfloat16, device="meta")
    with PeakMemory() as whole:
        drain(encoder.encode_whole(pixels))
    with PeakMemory() as strips:
        drain(encode_strips(encoder, pixels))
    assert whole.bytes > 2.9 * widest
    assert strips.bytes < 2.4 * widest


def _pixels(height: int, width: int, seed: int = 5) -> Tensor:
    return 2 * torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed)) - 1
