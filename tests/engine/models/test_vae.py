"""The VAE compared with that of diffusers, and decoding in strips with decoding at once."""

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLFlux2
from torch import Tensor

from engine.checkpoint.loader import load_vae
from engine.models.resumable import drain
from engine.models.vae import VAE, Decoder, Parts, VAEConfig, decode_strips
from tests.engine.checkpoints import VAE_CONFIG, Checkpoint, randomise
from tests.engine.memory import PeakMemory

# Overrides of the fixture's configuration: the published widths' order, and each switch a file may have.
CONFIGS: tuple[dict[str, Any], ...] = (
    {},
    {"block_out_channels": (64, 32, 16, 8), "norm_num_groups": 4, "layers_per_block": 1},
    {"decoder_block_out_channels": (8, 32, 64, 64)},
    {"use_post_quant_conv": False, "mid_block_add_attention": False, "latent_channels": 8},
)


@pytest.fixture(params=CONFIGS, ids=lambda overrides: ",".join(overrides) or "plain")
def referee(request: pytest.FixtureRequest) -> Any:
    """diffusers' VAE with random weights."""
    return randomise(AutoencoderKLFlux2(**VAE_CONFIG | request.param), seed=7)


@pytest.fixture
def vae(referee: Any, tmp_path: Any) -> VAE:
    referee.save_pretrained(tmp_path)
    return load_vae(tmp_path, "cpu", torch.float32)


@torch.inference_mode()
def test_pixels_are_diffusers(vae: VAE, referee: Any) -> None:
    latents = _latents(vae, 10, 14)
    torch.testing.assert_close(vae.decode(latents), referee.decode(latents).sample, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("strip_elements", [1, 1 << 13])
def test_strips_are_the_whole(vae: VAE, strip_elements: int) -> None:
    """Strips of one row, and of several rows that do not divide the height; equal up to float rounding."""
    x = _mid(vae, _latents(vae, 11, 14))
    whole = drain(vae.decoder.decode_whole(x))
    assert (whole - drain(decode_strips(vae.decoder, x, strip_elements))).abs().max() < 1e-4


@torch.inference_mode()
@pytest.mark.parametrize("max_whole_area", [1, VAE.max_whole_area])
def test_images_decoded_together(vae: VAE, monkeypatch: pytest.MonkeyPatch, max_whole_area: int) -> None:
    """Whole and in strips, equal up to float rounding."""
    latents = torch.cat([scale * _latents(vae, 10, 14) for scale in (1, 2, 3)])
    alone = torch.cat([vae.decode(each) for each in latents.split(1)])
    monkeypatch.setattr(VAE, "max_whole_area", max_whole_area)
    assert (vae.decode(latents) - alone).abs().max() < 1e-4


@torch.inference_mode()
def test_strips_in_bfloat16_are_as_near_to_float32_as_the_whole(checkpoint: Checkpoint) -> None:
    exact, rounded = (_load(checkpoint, dtype) for dtype in (torch.float32, torch.bfloat16))
    latents = _latents(exact, 16, 16)
    expected = exact.decode(latents)
    x = _mid(rounded, latents.bfloat16())
    whole = (drain(rounded.decoder.decode_whole(x)).float() - expected).abs().mean()
    strips = (drain(decode_strips(rounded.decoder, x, 1 << 13)).float() - expected).abs().mean()
    assert strips < 1.2 * whole


@torch.inference_mode()
def test_the_largest_image_takes_half_the_memory_in_strips() -> None:
    """The published VAE at 2048 x 2048 in bfloat16, on `meta`; the widest activation has 256 channels."""
    with torch.device("meta"):
        decoder = Decoder(VAEConfig()).bfloat16()
    widest = 256 * 2048 * 2048 * 2  # bytes
    x = torch.empty(1, 512, 256, 256, dtype=torch.bfloat16, device="meta")
    with PeakMemory() as whole:
        drain(decoder.decode_whole(x))
    with PeakMemory() as strips:
        drain(decode_strips(decoder, x))
    assert whole.bytes == 3 * widest
    assert strips.bytes < 1.7 * widest


@torch.inference_mode()
def test_only_large_latents_are_decoded_in_strips(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = _load(checkpoint, torch.float32)
    striped: list[int] = []
    monkeypatch.setattr(
        "engine.models.vae.decode_strips", lambda _, x: _spy(striped, vae.decoder.decode_whole(x))
    )
    monkeypatch.setattr(VAE, "max_whole_area", 8 * 6)
    vae.decode(_latents(vae, 8, 6))
    assert not striped
    vae.decode(_latents(vae, 8, 8))
    assert len(striped) == 1
    vae.decode(torch.cat([_latents(vae, 4, 6)] * 2))
    assert len(striped) == 1
    vae.decode(torch.cat([_latents(vae, 4, 6)] * 3))
    assert len(striped) == 2, "more in total"


def test_the_largest_size_that_is_decoded_at_once() -> None:
    assert VAE.max_whole_area * 8**2 == 1024 * 1024


def _spy(calls: list[int], parts: Parts) -> Parts:
    calls.append(1)
    return parts


def _load(checkpoint: Checkpoint, dtype: torch.dtype) -> VAE:
    return load_vae(checkpoint.path / "vae", "cpu", dtype)


def _latents(vae: VAE, rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    return 2 * torch.randn(1, vae.config.latent_channels, rows, columns, generator=generator)


def _mid(vae: VAE, latents: Tensor) -> Tensor:
    z = latents if vae.post_quant_conv is None else vae.post_quant_conv(latents)
    mid: Tensor = vae.decoder.mid_block(vae.decoder.conv_in(z))
    return mid
