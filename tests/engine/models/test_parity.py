"""Each stage of the engine compared with modules of diffusers, on random weights in float32."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.ideogram4.pipeline_ideogram4 import _logit_normal_sigmas, _resolution_aware_mu
from torch import Tensor

from engine.config.model_config import PUBLISHED_PRESETS
from engine.kernels.packing import Packing
from engine.models.dit import DiT
from engine.runner.model_runner import ModelRunner
from engine.runner.sampling import initial_noise, time_schedule
from tests.engine import reference
from tests.engine.adapters.files import comfyui, write
from tests.engine.adapters.uses import Held, begin
from tests.engine.checkpoints import Checkpoint
from tests.engine.conftest import Checkpoints, Runners, finish, finish_all, load_runner, relative, rgb, start
from tests.engine.reference import Job

TURBO = PUBLISHED_PRESETS["V4_TURBO_12"]
PROMPT = 'a poster that says "HELLO" in red letters'
PROMPTS = (
    "",
    "a",
    "日本語のポスター、赤い文字で「こんにちは」",
    "e\u0301 ne é; \u202eright to left\u202c; 👩🏽‍🚀; \ud7ff\U0010ffff\x00\t\r\n",
    '{"high_level_description": "A blue fox.", "bbox": [100, 200, 900, 800]}',
    "<|im_end|>\n<|im_start|>assistant\n{{ messages }} {% raw %}",
)
# Width and height in pixels.
SIZES = ((64, 64), (176, 96), (96, 272), (256, 256))


@pytest.mark.parametrize("length", [1, 2, 77, 2048])
def test_features_of_any_length(runner: ModelRunner, checkpoint: Checkpoint, length: int) -> None:
    ids = torch.randint(0, 500, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    features = runner.pipeline.text_encoder(ids)
    assert features.dtype == torch.float32
    torch.testing.assert_close(
        features, reference.text_features(checkpoint.referee, ids), atol=1e-5, rtol=1e-5
    )


def test_features_in_every_layout(checkpoints: Checkpoints, runners: Runners, layout: str) -> None:
    referee = checkpoints(layout).referee
    ids = reference.token_ids(referee, PROMPT)
    features = runners(layout).pipeline.text_encoder(ids)
    torch.testing.assert_close(features, reference.text_features(referee, ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("text_len", [1, 30, 2048])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_velocity(
    runner: ModelRunner, checkpoint: Checkpoint, width: int, height: int, text_len: int
) -> None:
    job = Job(PROMPT, width, height, guidance=(7.0,))
    features = 4 * torch.randn(text_len, 832, generator=torch.Generator().manual_seed(1))
    dit, referee = runner.pipeline.conditional, checkpoint.referee
    latents = reference.noise(job, dit.config.in_channels)
    for t in (0.0, 0.3, 1.0):
        expected = reference.velocity(referee.transformer, latents, t, features, job.grid)
        assert relative(_velocity(dit, latents, t, features, job), expected) < 1e-4


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_velocity_without_text(runner: ModelRunner, checkpoint: Checkpoint, width: int, height: int) -> None:
    job = Job(PROMPT, width, height, guidance=(7.0,))
    dit, referee = runner.pipeline.unconditional, checkpoint.referee
    latents = reference.noise(job, dit.config.in_channels)
    expected = reference.velocity(referee.unconditional_transformer, latents, 0.6, None, job.grid)
    assert relative(_velocity(dit, latents, 0.6, None, job), expected) < 1e-4


@pytest.mark.parametrize("preset", PUBLISHED_PRESETS)
@pytest.mark.parametrize(("width", "height"), [(256, 256), (512, 512), (2048, 1040), (320, 272)])
def test_schedule_is_diffusers_to_float32(preset: str, width: int, height: int) -> None:
    sampling = PUBLISHED_PRESETS[preset]
    times = time_schedule(sampling.num_inference_steps, width, height, sampling.mu, sampling.std)
    mu = _resolution_aware_mu(height=height, width=width, base_mu=sampling.mu)
    sigmas = _logit_normal_sigmas(sampling.num_inference_steps, mu, std=sampling.std)
    assert (1 - times[:-1]).float().tolist() == sigmas.tolist()


@pytest.mark.parametrize("steps", [1, 2, 12, 48])
def test_schedule_with_its_end_is_the_published_one(steps: int) -> None:
    job = Job(PROMPT, 320, 272, guidance=(7.0,) * steps)
    times = time_schedule(steps, job.width, job.height, job.mu, job.std)
    assert times.dtype == torch.float64
    assert times.tolist() == pytest.approx(reference.schedule(job), abs=1e-14)


def test_noise_is_diffusers(checkpoint: Checkpoint) -> None:
    generator = torch.Generator("cpu").manual_seed(9)
    expected = checkpoint.referee.prepare_latents(1, 24, 128, torch.float32, torch.device("cpu"), generator)
    assert torch.equal(initial_noise(9, 24, 128), expected[0])


@pytest.mark.parametrize(("width", "height"), [(256, 256), (176, 96)])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_final_latents(
    runner: ModelRunner, checkpoint: Checkpoint, prompt: str, width: int, height: int
) -> None:
    job = Job(prompt, width, height, TURBO.guidance_schedule)
    latents = finish(runner, start(runner, checkpoint, job)).latents
    assert _distance(latents, reference.sample(checkpoint.referee, job)) < 1e-3
    assert _distance(latents, _pipeline_latents(checkpoint, job)) < 2e-2


def test_final_latents_of_a_prompt_of_2048_tokens(runner: ModelRunner, checkpoint: Checkpoint) -> None:
    job = Job(_prompt_of(checkpoint, 2048), 96, 64, guidance=(7.0, 7.0, 3.0))
    latents = finish(runner, start(runner, checkpoint, job)).latents
    assert _distance(latents, reference.sample(checkpoint.referee, job)) < 1e-3


@pytest.mark.parametrize("preset", ["V4_QUALITY_48", "V4_DEFAULT_20"])
def test_final_latents_of_the_longer_presets(
    runner: ModelRunner, checkpoint: Checkpoint, preset: str
) -> None:
    sampling = PUBLISHED_PRESETS[preset]
    job = Job(PROMPT, 96, 112, sampling.guidance_schedule, sampling.mu, sampling.std)
    latents = finish(runner, start(runner, checkpoint, job)).latents
    assert _distance(latents, reference.sample(checkpoint.referee, job)) < 1e-3


def test_image_in_every_layout(checkpoints: Checkpoints, runners: Runners, layout: str) -> None:
    checkpoint, runner = checkpoints(layout), runners(layout)
    job = Job(PROMPT, 320, 272, TURBO.guidance_schedule)
    sample = finish(runner, start(runner, checkpoint, job))
    latents = reference.sample(checkpoint.referee, job)
    assert _distance(sample.latents, latents) < 1e-3
    difference = np.abs(rgb(runner, sample) - reference.decode(checkpoint.referee, latents, job.grid))
    assert difference.max() <= 2
    assert difference.mean() < 0.02


def test_bfloat16_stays_near_float32(checkpoints: Checkpoints, runners: Runners, layout: str) -> None:
    job = Job(PROMPT, 256, 256, TURBO.guidance_schedule)
    images = [
        rgb(each, finish(each, start(each, checkpoints(layout), job)))
        for each in (runners(layout), load_runner(checkpoints(layout).path, torch.bfloat16))
    ]
    assert 0 < np.abs(images[0] - images[1]).mean() <= 3


def test_guidance_of_one_needs_no_unconditional_pass(
    runner: ModelRunner, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(PROMPT, 96, 64, guidance=(1.0, 1.0, 1.0))
    monkeypatch.setattr(runner.pipeline.unconditional, "forward", None)
    latents = finish(runner, start(runner, checkpoint, job)).latents
    assert _distance(latents, reference.sample(checkpoint.referee, job)) < 1e-3


PACK = (
    Job("a", 176, 96, TURBO.guidance_schedule, seed=1),
    Job(PROMPT * 9, 176, 96, (1.0, 5.0, 1.0, 3.0), mu=0.0, std=1.5, seed=2),
    Job("Füchse 🦊", 176, 96, (1.0,) * 3, seed=3),
)


def test_samples_in_a_packed_row_equal_each_alone(runner: ModelRunner, checkpoint: Checkpoint) -> None:
    """With different prompt lengths, presets, guidance and progress: samples join late and leave early."""
    samples = [start(runner, checkpoint, job) for job in PACK]
    runner.denoise_step(samples[:1])
    finish_all(runner, samples)
    for job, sample in zip(PACK, samples, strict=True):
        alone = finish(runner, start(runner, checkpoint, job))
        assert _distance(sample.latents, alone.latents) < 1e-4
        assert _distance(sample.latents, reference.sample(checkpoint.referee, job)) < 1e-3


def test_a_packed_row_equals_the_padded_batch_of_diffusers(
    runner: ModelRunner, checkpoint: Checkpoint
) -> None:
    prompts = ["a", PROMPT * 3]
    jobs = [Job(prompt, 96, 64, TURBO.guidance_schedule, seed=seed) for seed, prompt in enumerate(prompts)]
    samples = [start(runner, checkpoint, job) for job in jobs]
    while not samples[0].is_finished:
        runner.denoise_step(samples)
    generators = [torch.Generator("cpu").manual_seed(job.seed) for job in jobs]
    expected = _pipeline_latents(checkpoint, jobs[0], prompts, generators)
    for sample, latents in zip(samples, expected, strict=True):
        assert _distance(sample.latents, latents) < 2e-2


def _velocity(dit: DiT, latents: Tensor, t: float, features: Tensor | None, job: Job) -> Tensor:
    text = [] if features is None else [dit.project_text(features)]
    text_len = 0 if features is None else len(features)
    packing = Packing.build([text_len], [len(latents)], "cpu")
    return dit(latents, text, dit.modulate(torch.tensor([t])), dit.rotary(text_len, *job.grid), packing)


def _pipeline_latents(
    checkpoint: Checkpoint,
    job: Job,
    prompts: list[str] | None = None,
    generators: list[torch.Generator] | None = None,
) -> Tensor:
    """Final latents of diffusers' pipeline, (N, C), or (B, N, C) for several prompts."""
    texts = prompts or [job.prompt]
    images: Tensor = checkpoint.referee(
        texts,
        job.height,
        job.width,
        num_inference_steps=len(job.guidance),
        guidance_schedule=job.guidance,
        mu=job.mu,
        std=job.std,
        generator=generators or torch.Generator("cpu").manual_seed(job.seed),
        max_sequence_length=max(reference.count_tokens(checkpoint.referee, text) for text in texts) + 3,
        output_type="latent",
    ).images
    return images if prompts else images[0]


def _prompt_of(checkpoint: Checkpoint, tokens: int) -> str:
    """A prompt with exactly this number of tokens, including the chat template."""
    frame = reference.count_tokens(checkpoint.referee, "")
    prompt = "日" * ((tokens - frame) // 3)  # three bytes, none of them ever merged
    prompt += "é"[: (tokens - frame) % 3 // 2] + "?" * ((tokens - frame) % 3 % 2)
    assert reference.count_tokens(checkpoint.referee, prompt) == tokens
    return prompt


def _distance(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max())


@pytest.mark.parametrize("layout", ["official", "official-fp8", "official-nf4"])
def test_an_adapter_on_stored_weights_of_each_kind(
    checkpoints: Checkpoints, runners: Runners, tmp_path: Path, layout: str
) -> None:
    """The reference has the dequantised weights, and one loaded adapter."""
    checkpoint, held, job = checkpoints(layout), Held(), Job(PROMPT, 96, 64, guidance=(7.0, 1.0, 3.0))
    runner = ModelRunner(runners(layout).pipeline, "cpu", adapters=held)
    file = write(tmp_path / "a.safetensors", comfyui(runner.pipeline.conditional.config))
    latents = finish(runner, begin(runner, checkpoint, job, held.use(runner, file, scale=1.5))).latents
    referee = copy.copy(checkpoint.referee)
    referee.transformer = copy.deepcopy(referee.transformer)
    referee.load_lora_weights(str(tmp_path), weight_name=file.name, adapter_name="a")
    referee.set_adapters(["a"], [1.5])
    assert relative(latents, reference.sample(referee, job)) < 1e-4
