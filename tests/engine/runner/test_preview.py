"""Previews compared with images that the VAE decodes, on the demo model."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.checkpoint.loader import load_pipeline
from engine.client.tokenizer import Tokenizer
from engine.config.part_folders import PartFolders
from engine.models.resumable import drain
from engine.request import EngineRequest, SamplingParams
from engine.runner.image_codec import unpatchify
from engine.runner.model_runner import ModelRunner
from engine.runner.request_state import RequestState
from tests.engine.conftest import finish

DEMO = Path(__file__).parents[3] / "models" / "demo"


@pytest.fixture(scope="module")
def runner() -> ModelRunner:
    return ModelRunner(load_pipeline(PartFolders.of(DEMO), "cpu", torch.float32), "cpu")


@torch.inference_mode()
def both(runner: ModelRunner, tokens: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
    """The preview of clean tokens, and the mean of the decoded pixels of each latent; 0..255."""
    rows, columns = runner._grid(width, height)
    preview = runner._preview_map(tokens, rows, columns).float()
    vae = runner.pipeline.vae
    norm = runner.pipeline.latent_norm
    latents = unpatchify(tokens * norm.scale + norm.shift, rows, columns)
    pixels = vae.decode(latents.unsqueeze(0)).clamp(-1, 1)
    small = torch.nn.functional.avg_pool2d(pixels, vae.config.scale_factor)[0]
    return preview, (small.permute(1, 2, 0) + 1) * 127.5


@pytest.mark.parametrize(("width", "height"), [(64, 64), (128, 96), (96, 128)])
def test_previews_look_like_the_decoded_image(runner: ModelRunner, width: int, height: int) -> None:
    ids = Tokenizer(DEMO / "tokenizer", 2048).encode("a yellow heart at the top left on a blue background")
    sampling = SamplingParams((3.0,) * 12, mu=1.4, std=1.5)
    state = RequestState(EngineRequest("preview", ids, width, height, (1,), sampling))
    (state.conditioning,) = drain(runner.encode([state.request]))
    sample = finish(runner, runner.new_sample(state, 0))
    preview, small = both(runner, sample.latents, width, height)
    assert preview.shape == (height // 8, width // 8, 3)
    # Far nearer than the picture's own mean colour is, and nearer than any other arrangement of it.
    error = (preview - small).abs().mean()
    assert error < 0.8 * (small - small.mean((0, 1))).abs().mean()
    assert error < 0.9 * (preview.flip(0) - small).abs().mean()
    assert error < 0.9 * (preview.flip(1) - small).abs().mean()


def test_a_map_is_fitted_if_the_checkpoint_has_none(runner: ModelRunner) -> None:
    plain = ModelRunner(dataclasses.replace(runner.pipeline, latent_rgb=None), "cpu")
    generator = torch.Generator().manual_seed(1)
    flat = torch.randn(runner.pipeline.vae.config.latent_channels, generator=generator).repeat(4)
    preview, small = both(plain, flat.expand(64, -1), 128, 128)
    assert (preview - small).abs().mean() < 64
