"""Measures the cost model that the scheduler and admission control use."""

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.adapters.adapter import blank_adapter
from engine.config.model_config import ModelConfig
from engine.config.options import EngineOptions
from engine.cost import CostModel, LinearCost
from engine.errors import CheckpointError
from engine.models.resumable import drain
from engine.request import AdapterUse, EngineRequest, SamplingParams, SourceImage
from engine.runner.model_runner import ModelRunner
from engine.runner.request_state import RequestState, SampleState

# Seconds after which no further size is measured; the smallest size is always measured.
BUDGET_SECONDS = 10.0
_RUNS = 3
_BATCHES = (1, 4)
_PROMPT_LENS = (16, 256)
_RANK = 16  # of the adapter that is measured
_LEAST_ADDED = 0.005  # share of a step that an adapter adds at least; less is noise
_LENGTHS_OF_EXAMPLES = (17, 23)
_GUIDED, _UNGUIDED = (SamplingParams((scale,) * _RUNS, mu=0.0, std=1.5) for scale in (7.0, 1.0))

# The number of passes (each has the fixed cost), the lengths they ran over, and the seconds they took.
Point = tuple[int, list[int], float]


def measure(runner: ModelRunner, config: ModelConfig, options: EngineOptions) -> CostModel:
    """Measure the smallest and the default size, batches of 1 and 4, and a short and a long prompt.

    Raises CheckpointError that names the part whose output is not finite.
    """
    try:
        return _measure(runner, config, options)
    except FloatingPointError as error:
        part = _overflowing_part(runner, config)
        raise CheckpointError(f"{part}: the weights turn a prompt into NaN or infinity") from error


def _measure(runner: ModelRunner, config: ModelConfig, options: EngineOptions) -> CostModel:
    until = time.monotonic() + BUDGET_SECONDS
    sizes = sorted({(config.limits.min_size,) * 2, (config.default_width, config.default_height)})
    lengths = sorted({min(length, config.limits.max_prompt_tokens) for length in _PROMPT_LENS})
    encodes = [_encode(runner, length) for length in lengths]
    steps: list[Point] = []
    decodes: list[Point] = []
    sources: list[Point] = []
    adapted: list[Point] = []
    for size, batch in product(sizes, _BATCHES):
        if steps and time.monotonic() > until:
            break
        if batch > 1 and batch * (runner.image_tokens(*size) + lengths[0]) > options.max_batch_tokens:
            continue
        samples = _samples(runner, size, batch, _GUIDED, lengths[0])
        steps.append(_step(runner, samples))
        if batch == 1 and options.adapter_memory_gb:
            again = _samples(runner, size, batch, _GUIDED, lengths[0])
            adapted.append(_adapter(runner, again, steps[-1]))
        if batch == 1 or size == sizes[0]:  # larger ones would take much memory
            decodes.append(_decode(runner, samples))
            sources += _encode_sources(runner, samples)
    return CostModel(
        pass_=fit(steps, squares=True),
        encode=fit(encodes, squares=False),
        decode=fit(decodes, squares=False),
        pixels_per_token=runner.pixels_per_token,
        max_batch_size=min(options.max_batch_size, options.max_running),
        max_batch_tokens=options.max_batch_tokens,
        encode_image=fit(sources, squares=False) if sources else LinearCost(0.0, 0.0),
        adapter=fit(adapted, squares=False) if adapted else LinearCost(0.0, 0.0),
        max_encode_tokens=options.max_encode_tokens,
        max_decode_tokens=options.max_decode_tokens,
    )


def examples(runner: ModelRunner, config: ModelConfig) -> list[list[SampleState]]:
    """Guided batches of a small size: one sample, and two with different prompt lengths.

    Code that is compiled for a number of tokens that equals a width of the model serves this number only.
    """
    limits = config.limits
    size = (limits.min_size + limits.multiple_of, limits.min_size)
    shorter, longer = (_samples(runner, size, 1, _GUIDED, length) for length in _LENGTHS_OF_EXAMPLES)
    return [shorter, [*_samples(runner, size, 1, _GUIDED, _LENGTHS_OF_EXAMPLES[0]), *longer]]


def _overflowing_part(runner: ModelRunner, config: ModelConfig) -> Path:
    """Return the folder of the first part whose output is not finite."""
    folders = config.folders
    length, size = min(_PROMPT_LENS[0], config.limits.max_prompt_tokens), (config.limits.min_size,) * 2
    if not runner.pipeline.text_encoder((0,) * length).isfinite().all():
        return folders.text_encoder
    second = folders.unconditional or folders.transformer
    for part, sampling in ((folders.transformer, _UNGUIDED), (second, _GUIDED)):
        samples = _samples(runner, size, 1, sampling, length)
        for _ in range(_RUNS):
            runner.denoise_step(samples)
        if not samples[0].latents.isfinite().all():
            return part
    return folders.vae


def _encode(runner: ModelRunner, length: int) -> Point:
    return 1, [length], _fastest(lambda: _encode_anew(runner, _request((64, 64), (0,) * length, _GUIDED)))


def _encode_anew(runner: ModelRunner, request: EngineRequest) -> None:
    runner.clear_cache()
    drain(runner.encode([request]))


def _step(runner: ModelRunner, samples: list[SampleState]) -> Point:
    tokens = len(samples[0].latents)
    seconds = _fastest(lambda: _finish_step(runner, samples))
    conditional = [tokens + len(sample.request.token_ids) for sample in samples]
    return 2, conditional + [tokens] * len(samples), seconds


def _finish_step(runner: ModelRunner, samples: list[SampleState]) -> None:
    runner.denoise_step(samples)
    runner.device.synchronize()


def _adapter(runner: ModelRunner, samples: list[SampleState], plain: Point) -> Point:
    """What an adapter of a common rank that changes every matrix adds to a step of one sample."""
    state = samples[0].state
    assert state.conditioning is not None
    used = AdapterUse("warmup", "", "", 1.0), blank_adapter(runner.pipeline.conditional, _RANK)
    state.conditioning = replace(state.conditioning, adapters=(used,))
    _, lengths, seconds = _step(runner, samples)
    return 1, lengths[:1], max(seconds - plain[2], _LEAST_ADDED * plain[2])


def _decode(runner: ModelRunner, samples: list[SampleState]) -> Point:
    seconds = _fastest(lambda: _finish_decode(runner, samples))
    return 1, [len(sample.latents) for sample in samples], seconds


def _encode_sources(runner: ModelRunner, samples: list[SampleState]) -> list[Point]:
    """Encode as many grey images, if the model has an encoder."""
    if runner.pipeline.vae_encoder is None:
        return []
    width, height = samples[0].request.resolution
    source = SourceImage(bytes(3 * width * height), None, strength=0.5, fingerprint="")
    requests = [replace(sample.request, source=source) for sample in samples]
    seconds = _fastest(lambda: drain(runner.encode_sources(requests)))
    return [(1, [len(sample.latents) for sample in samples], seconds)]


def _finish_decode(runner: ModelRunner, samples: list[SampleState]) -> None:
    for rgb in drain(runner.decode(samples)):
        if isinstance(rgb, FloatingPointError):
            raise rgb


def _samples(
    runner: ModelRunner, size: tuple[int, int], batch: int, sampling: SamplingParams, length: int
) -> list[SampleState]:
    state = RequestState(_request(size, (0,) * length, sampling))
    (state.conditioning,) = drain(runner.encode([state.request]))
    return [runner.new_sample(state, 0) for _ in range(batch)]


def _request(size: tuple[int, int], token_ids: tuple[int, ...], sampling: SamplingParams) -> EngineRequest:
    return EngineRequest("warmup", token_ids, *size, seeds=(0,), sampling=sampling)


def _fastest(run: Callable[[], object]) -> float:
    """The minimum of several runs: the first one loads kernels, and others may be disturbed."""
    return min(_seconds(run) for _ in range(_RUNS))


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def fit(points: list[Point], squares: bool) -> LinearCost:
    """Minimise the squared relative errors, with no negative coefficient."""
    rows = np.array([[fixed, sum(lens), sum(n * n for n in lens)] for fixed, lens, _ in points], float)
    weighted = rows / np.array([[seconds] for *_, seconds in points])
    candidates = [_solve(weighted, columns) for columns in (_WITH_SQUARES if squares else _LINEAR)]
    sound = [(error, solution) for error, solution in candidates if min(solution) >= 0]
    return LinearCost(*min(sound)[1])


# Candidates for which of base, length and square are fitted; the length alone always has a solution.
_LINEAR = [(0, 1), (1,)]
_WITH_SQUARES = [(0, 1, 2), (0, 2), (1, 2), *_LINEAR]


def _solve(rows: NDArray[np.float64], columns: tuple[int, ...]) -> tuple[float, tuple[float, ...]]:
    """Fit each row to 1. Returns the squared error and the coefficients, which are 0 for columns left out."""
    chosen = rows[:, columns]
    scale = chosen.max(axis=0)  # tokens and their squares differ by orders of magnitude
    found = np.linalg.lstsq(chosen / scale, np.ones(len(rows)), rcond=None)[0] / scale
    solution = np.zeros(3)
    solution[list(columns)] = found
    return float(((rows @ solution - 1) ** 2).sum()), tuple(map(float, solution))
