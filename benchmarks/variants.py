"""The variants that `benchmarks.versus` compares: this engine and diffusers' pipeline."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.late_start import late_latents, late_schedule
from engine.checkpoint.loader import Pipeline
from engine.client.tokenizer import Tokenizer
from engine.config.model_config import PUBLISHED_PRESETS, ModelConfig
from engine.config.options import EngineOptions
from engine.models.resumable import drain
from engine.request import EngineRequest, SourceImage
from engine.runner.cuda_graphs import cuda_recorder
from engine.runner.device import set_up_cpu
from engine.runner.model_runner import ModelRunner
from engine.runner.request_state import RequestState, SampleState
from engine.tuning.tuner import load_tuned

TURBO = PUBLISHED_PRESETS["V4_TURBO_12"]
MAX_TOKENS = 2048
SEED = 5
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Job:
    """One image: side in pixels, prompt length in tokens, number of its steps to run (at least 2).

    At a strength below 1 it is made from another image, in fewer than 12 steps.
    """

    side: int
    tokens: int
    steps: int
    strength: float = 1.0

    @property
    def source(self) -> SourceImage | None:
        """An image of random pixels; None at strength 1."""
        if self.strength == 1:
            return None
        pixels = np.random.default_rng(SEED).bytes(3 * self.side**2)
        return SourceImage(pixels, None, self.strength, fingerprint="")

    @property
    def first_step(self) -> int:
        """Index of the first of the 12 steps that the image takes."""
        return EngineRequest("", (), 0, 0, (), TURBO, source=self.source).first_step


@dataclass(frozen=True)
class Run:
    """One image: seconds of each step after the first (`steps`) and of everything else (`once`)."""

    once: float
    steps: list[float]
    pixels: NDArray[np.uint8]


class Stopwatch:
    """Times one image. After each step, `pause` runs the other variants and is not counted."""

    def __init__(self, pause: Callable[[], object]) -> None:
        self._pause = pause
        self._laps: list[float] = []
        self._started = time.perf_counter()

    def step_done(self) -> None:
        self._lap()
        self._pause()
        self._started = time.perf_counter()

    def image_done(self, pixels: NDArray[np.uint8]) -> Run:
        self._lap()
        first, *steps, last = self._laps
        return Run(first + last, steps, pixels)

    def _lap(self) -> None:
        self._laps.append(time.perf_counter() - self._started)


def image_seconds(runs: list[Run], first_step: int = 0) -> float:
    """Seconds of an image that takes the 12 steps from `first_step` on, from the medians of the runs."""
    steps = [seconds for run in runs for seconds in run.steps]
    return median(run.once for run in runs) + (TURBO.num_inference_steps - first_step - 1) * median(steps)


def no_pause() -> None:
    """The pause of a variant that runs alone."""


class Variant(Protocol):
    """A way to make images."""

    def run(self, job: Job, pause: Callable[[], object] = no_pause) -> Run: ...


class Ours:
    """The engine."""

    def __init__(
        self, pipeline: Pipeline, tokenizer: Tokenizer, compiled: bool = False, recorded: bool = False
    ) -> None:
        device = pipeline.latent_norm.scale.device
        self.runner = ModelRunner(
            pipeline, device, compiled=compiled, recorder=cuda_recorder if recorded else None
        )
        self.tokenizer = tokenizer
        self.picked: dict[str, Any] = {}  # the kernels that were chosen for this machine

    @classmethod
    def load(
        cls,
        path: Path,
        dtype: str | None,
        compiled: bool = False,
        set_up: bool = True,
        kernels: tuple[tuple[str, str], ...] = (),
    ) -> "Ours":
        """Load a checkpoint on the CPU as a worker does."""
        if set_up:
            set_up_cpu(workers=1)
        options = EngineOptions(dtype=dtype, kernels=kernels)
        pipeline, tuning = load_tuned(ModelConfig.load(path), options, CPU)
        loaded = cls(pipeline, load_tokenizer(path), compiled)
        loaded.picked = tuning.choices
        return loaded

    def start(self, side: int, text: str, seed: int = SEED, source: SourceImage | None = None) -> SampleState:
        """A sample before its first step; encodes the source, and the prompt if it is not cached."""
        ids = self.tokenizer.encode(text)
        state = RequestState(EngineRequest("bench", ids, side, side, (seed,), TURBO, source=source))
        (state.conditioning,) = drain(self.runner.encode([state.request]))
        if source:
            (state.source,) = drain(self.runner.encode_sources([state.request]))
        return self.runner.new_sample(state, 0)

    def step(self, samples: list[SampleState]) -> None:
        """Run one step and wait for the device."""
        self.runner.denoise_step(samples)
        self.runner.device.synchronize()

    def run(self, job: Job, pause: Callable[[], object] = no_pause) -> Run:
        self.runner.clear_cache()
        text, source = prompt(self.tokenizer, job.tokens), job.source
        watch = Stopwatch(pause)
        sample = self.start(job.side, text, source=source)
        for _ in range(job.steps):
            self.step([sample])
            watch.step_done()
        (rgb,) = drain(self.runner.decode([sample]))
        assert isinstance(rgb, bytes)
        return watch.image_done(np.frombuffer(rgb, np.uint8).reshape(job.side, job.side, 3))


class Theirs:
    """diffusers' pipeline."""

    def __init__(
        self, pipeline: Any, tokenizer: Tokenizer, compiled: bool = False, defaults: bool = False
    ) -> None:
        self.pipeline = pipeline
        self.pipeline.set_progress_bar_config(disable=not defaults)
        if compiled:
            self.pipeline.transformer.compile_repeated_blocks()
            self.pipeline.unconditional_transformer.compile_repeated_blocks()
        self.tokenizer = tokenizer
        self.defaults = defaults

    @classmethod
    def load(cls, path: Path, dtype: str, compiled: bool = False, defaults: bool = False) -> "Theirs":
        from diffusers import Ideogram4Pipeline

        silence()
        pipeline = Ideogram4Pipeline.from_pretrained(path, dtype=getattr(torch, dtype))
        return cls(pipeline, load_tokenizer(path), compiled, defaults)

    def run(self, job: Job, pause: Callable[[], object] = no_pause) -> Run:
        def stepped(pipeline: Any, step: int, _time: Any, _kwargs: Any) -> dict[str, Any]:
            if pipeline.device.type == "cuda":
                torch.cuda.synchronize(pipeline.device)
            watch.step_done()
            pipeline._interrupt = step + 1 >= job.steps  # skip the remaining steps
            return {}

        text, source, first = prompt(self.tokenizer, job.tokens), job.source, job.first_step
        late = (job.side, TURBO, first, SEED)
        watch = Stopwatch(pause)
        with late_schedule(self.pipeline.scheduler, first):
            image = self.pipeline(
                text,
                height=job.side,
                width=job.side,
                num_inference_steps=TURBO.num_inference_steps,
                guidance_schedule=[*TURBO.guidance_schedule[first:], *TURBO.guidance_schedule[:first]],
                mu=TURBO.mu,
                std=TURBO.std,
                max_sequence_length=MAX_TOKENS if self.defaults else job.tokens,
                generator=torch.Generator("cpu").manual_seed(SEED),
                latents=late_latents(self.pipeline, source.rgb, *late) if source else None,
                callback_on_step_end=stepped,
                output_type="np",
            ).images[0]
        return watch.image_done(np.asarray((image * 255).round(), np.uint8))


def silence() -> None:
    """Turn off the progress bars and warnings of diffusers and transformers."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()


VARIANTS: dict[str, Callable[[Path, str], Variant]] = {
    "ours": Ours.load,
    "ours, compiled": lambda path, dtype: Ours.load(path, dtype, compiled=True),
    "diffusers": Theirs.load,
    "diffusers, compiled": lambda path, dtype: Theirs.load(path, dtype, compiled=True),
    "diffusers, defaults": lambda path, dtype: Theirs.load(path, dtype, defaults=True),
}


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a checkpoint."""
    return Tokenizer(path / "tokenizer", MAX_TOKENS)


def prompt(tokenizer: Tokenizer, tokens: int) -> str:
    """A text of `tokens` tokens, chat template included."""
    text = " a" * (tokens - len(tokenizer.encode("")))
    assert len(tokenizer.encode(text)) == tokens, "the filler is not one token"
    return text
