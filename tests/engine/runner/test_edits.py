"""Image to image and inpainting compared with loops on modules of diffusers, on random weights in float32."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import FluxImg2ImgPipeline
from torch import Tensor

from engine.config.model_config import PUBLISHED_PRESETS
from engine.request import EngineRequest, SamplingParams, SourceImage
from engine.runner.image_codec import patchify, unpatchify
from engine.runner.model_runner import ModelRunner
from engine.runner.sampling import Known
from tests.engine import reference
from tests.engine.checkpoints import Checkpoint
from tests.engine.conftest import finish, finish_all, rgb, start
from tests.engine.reference import Edit, Job, Pixels
from tests.engine.sources import gradient, rectangle, source

TURBO = PUBLISHED_PRESETS["V4_TURBO_12"]
JOB = Job("a", 96, 64, TURBO.guidance_schedule)


def soft(width: int, height: int) -> Pixels:
    """Painted on the right, kept on the left, and a gradient between them."""
    ramp = np.clip(np.linspace(-128, 384, width), 0, 255).astype(np.uint8)
    return np.broadcast_to(ramp, (height, width)).copy()


# Preset, size, strength and mask.
EDITS: list[tuple[str, int, int, float, Pixels | None]] = [
    ("V4_TURBO_12", 96, 64, 0.15, None),
    ("V4_TURBO_12", 64, 112, 0.7, None),
    ("V4_TURBO_12", 96, 64, 0.0, None),
    ("V4_DEFAULT_20", 96, 64, 0.55, None),
    ("V4_QUALITY_48", 64, 64, 0.3, None),
    ("V4_TURBO_12", 96, 64, 1.0, rectangle(96, 64, 24, 16, 72, 40)),
    ("V4_TURBO_12", 64, 112, 0.6, rectangle(64, 112, 30, 0, 33, 112)),
    ("V4_DEFAULT_20", 96, 64, 0.8, soft(96, 64)),
    ("V4_QUALITY_48", 64, 64, 0.25, rectangle(64, 64, 0, 0, 64, 64)),
]


@pytest.mark.parametrize("steps", [1, 2, 12, 20, 48])
def test_the_steps_that_run_are_those_of_diffusers(steps: int) -> None:
    scheduler = SimpleNamespace(timesteps=torch.arange(steps), order=1)
    theirs = FluxImg2ImgPipeline.get_timesteps
    for strength in np.linspace(0, 1, 101).tolist():
        request = _request(steps, SourceImage(b"", None, strength, ""))
        _, expected = theirs(SimpleNamespace(scheduler=scheduler), steps, strength, "cpu")
        assert request.num_steps == expected, strength
        assert request.first_step == steps - expected


@pytest.mark.parametrize(("preset", "width", "height", "strength", "mask"), EDITS)
def test_final_latents(
    runner: ModelRunner,
    checkpoint: Checkpoint,
    preset: str,
    width: int,
    height: int,
    strength: float,
    mask: Pixels | None,
) -> None:
    sampling = PUBLISHED_PRESETS[preset]
    job = Job("a", width, height, sampling.guidance_schedule, sampling.mu, sampling.std)
    picture = gradient(width, height)
    sample = finish(runner, start(runner, checkpoint, job, source(picture, strength, mask)))
    expected = reference.sample(checkpoint.referee, job, Edit(picture, strength, mask))
    assert _distance(sample.latents, expected) < 1e-3


def test_the_source_matters(runner: ModelRunner, checkpoint: Checkpoint) -> None:
    """Otherwise the other tests would prove nothing."""
    pictures = gradient(96, 64), 255 - gradient(96, 64)
    latents = [finish(runner, start(runner, checkpoint, JOB, source(each, 0.5))).latents for each in pictures]
    assert _distance(*latents) > 0.1


def test_strength_1_is_text_to_image_bit_for_bit(runner: ModelRunner, checkpoint: Checkpoint) -> None:
    """Also if a mask paints everything."""
    everything = rectangle(96, 64, 0, 0, 96, 64)
    wanted = finish(runner, start(runner, checkpoint, JOB))
    for mask in (None, everything):
        edited = finish(runner, start(runner, checkpoint, JOB, source(gradient(96, 64), 1.0, mask)))
        assert torch.equal(edited.latents, wanted.latents)
        assert np.array_equal(rgb(runner, edited), rgb(runner, wanted))


def test_strength_0_is_the_decoded_encoding(runner: ModelRunner, checkpoint: Checkpoint) -> None:
    picture = gradient(96, 64)
    sample = start(runner, checkpoint, JOB, source(picture, 0.0))
    assert (sample.is_finished, sample.num_steps) == (True, 0)
    latents = reference.encode(checkpoint.referee, picture)
    expected = reference.decode(checkpoint.referee, latents, JOB.grid).astype(int)
    assert np.abs(rgb(runner, sample) - expected).max() <= 1


@pytest.mark.parametrize("mask", [rectangle(96, 64, 37, 11, 60, 50), soft(96, 64)])
def test_pixels_are_composited_by_the_mask(runner: ModelRunner, checkpoint: Checkpoint, mask: Pixels) -> None:
    """Where it is 0 they are the source's, where it is 255 the decoded ones, and blended between them."""
    picture = gradient(96, 64)
    sample = finish(runner, start(runner, checkpoint, JOB, source(picture, 0.9, mask)))
    painted = rgb(runner, sample)
    decoded = reference.decode(checkpoint.referee, sample.latents, JOB.grid).astype(int)
    assert np.array_equal(painted[mask == 0], picture[mask == 0])
    assert np.abs(painted - decoded)[mask == 255].max() <= 1
    assert not np.array_equal(painted[mask == 255], picture[mask == 255])
    weights = mask[..., None] / 255
    assert np.abs(painted - (weights * decoded + (1 - weights) * picture)).max() <= 1.5


@pytest.mark.parametrize("width", [1, 5, 8])
def test_a_mask_thinner_than_a_token_acts(runner: ModelRunner, checkpoint: Checkpoint, width: int) -> None:
    """It frees the latents that it touches, and no other ones."""
    mask = rectangle(96, 64, 24, 0, 24 + width, 64)
    sample = start(runner, checkpoint, JOB, source(gradient(96, 64), 0.9, mask))
    before = unpatchify(reference.encode(checkpoint.referee, gradient(96, 64)), *JOB.grid)
    change = (unpatchify(finish(runner, sample).latents, *JOB.grid) - before).abs().amax(dim=(0, 1))
    assert (change > 0.1).tolist() == [column == 3 for column in range(12)]
    assert change[[*range(3), *range(4, 12)]].max() < 1e-4


def test_a_preview_shows_what_a_mask_keeps(runner: ModelRunner, checkpoint: Checkpoint) -> None:
    mask = rectangle(96, 64, 0, 0, 48, 64)
    sample = start(runner, checkpoint, JOB, source(gradient(96, 64), 0.9, mask))
    object.__setattr__(sample.request, "num_previews", 11)
    clean = start(runner, checkpoint, JOB, source(gradient(96, 64), 0.0)).latents
    runner.denoise_step([sample])
    assert sample.preview_due == 0
    assert sample.clean is not None
    kept = reference.weights(255 - mask, clean.shape[1]).bool()
    assert torch.equal(sample.clean[kept], clean[kept])
    runner.preview(sample)


def test_edits_and_generations_share_steps(runner: ModelRunner, checkpoint: Checkpoint) -> None:
    """They start at different steps of different schedules, and each equals itself alone."""
    longer = Job("b", 96, 64, PUBLISHED_PRESETS["V4_DEFAULT_20"].guidance_schedule, 0.0, 1.75, seed=9)
    mask = rectangle(96, 64, 24, 16, 72, 40)
    sources = [None, source(gradient(96, 64), 0.5), source(gradient(96, 64), 0.8, mask)]
    asked = [(job, each) for job in (JOB, longer) for each in sources]
    alone = [finish(runner, start(runner, checkpoint, *each)) for each in asked]
    together = [start(runner, checkpoint, *each) for each in asked]
    finish_all(runner, together)
    for one, expected in zip(together, alone, strict=True):
        assert _distance(one.latents, expected.latents) < 1e-4


def test_what_is_kept_has_the_noise_of_each_step() -> None:
    data, noise, latents = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0)).unbind()
    painted = torch.zeros(4, 8)
    painted[0], painted[1] = 1.0, 0.25
    kept = Known(data, painted, noise).keep(latents, 0.75)
    assert torch.equal(kept[0], latents[0])
    torch.testing.assert_close(kept[1], 0.25 * latents[1] + 0.75 * (0.75 * data[1] + 0.25 * noise[1]))
    assert torch.equal(Known(data, painted, noise).keep(latents, 1.0)[2:], data[2:])


def test_patches() -> None:
    latents = torch.arange(3 * 4 * 6).view(3, 4, 6)
    tokens = patchify(latents)
    assert tokens[1].tolist() == latents[:, :2, 2:4].permute(1, 2, 0).flatten().tolist()
    assert torch.equal(unpatchify(tokens, 2, 3), latents)


def test_strength_and_steps_of_a_request_without_a_source() -> None:
    request = _request(12, None)
    assert (request.first_step, request.num_steps, request.encodes_source) == (0, 12, False)


def _request(steps: int, given: SourceImage | None) -> EngineRequest:
    sampling = SamplingParams((1.0,) * steps, 0.0, 1.5)
    return EngineRequest("edit", (1,), 64, 64, (0,), sampling, source=given)


def _distance(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max())
