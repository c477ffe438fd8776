"""Measures the model on this machine: the cost model that scheduling and admission go by."""

import time
from collections.abc import Callable, Generator, Iterator
from itertools import product
from typing import Any

import numpy as np

from engine.config import ModelConfig
from engine.cost import CostModel, LinearCost
from engine.messages import EngineRequest, SamplingParams
from engine.model_runner import ModelRunner
from engine.request import RequestState, SampleState

# Measuring stops after this many seconds; the smallest of everything is always measured.
BUDGET_SECONDS = 10.0
_BATCHES = (1, 4)
_PROMPT_LENS = (16, 256)
_GUIDED = SamplingParams((7.0, 7.0, 7.0), mu=0.0, std=1.5)


def measure(runner: ModelRunner, config: ModelConfig) -> CostModel:
    """Run the smallest and the default size, small batches, a short and a long prompt."""
    until = time.monotonic() + BUDGET_SECONDS
    encode = _fit(_encodings(runner, config, until), squares=False)
    sizes = sorted({(config.limits.min_size,) * 2, (config.default_width, config.default_height)})
    passes: list[Point] = []
    decodes: list[Point] = []
    for size, batch in product(sizes, _BATCHES):
        if passes and time.monotonic() > until:
            break
        samples = _samples(runner, size, batch)
        passes.append(_step(runner, samples))
        if batch == 1:
            decodes.append(_decoding(runner, samples[0]))
    return CostModel(
        pass_=_fit(passes, squares=True),
        encode=encode,
        decode=_fit(decodes, squares=False),
        pixels_per_token=runner.pixels_per_token,
    )


# One measured point: how often the fixed cost occurs, the lengths it ran over, seconds.
Point = tuple[int, list[int], float]


def _encodings(runner: ModelRunner, config: ModelConfig, until: float) -> list[Point]:
    points: list[Point] = []
    for length in _PROMPT_LENS:
        if points and time.monotonic() + points[-1][2] * length / points[-1][1][0] > until:
            break
        ids = iter(range(2))
        run = lambda length=length, ids=ids: _drain(  # noqa: E731
            runner.encode_prompt(
                _request((64, 64), (next(ids),) * min(length, config.limits.max_prompt_tokens))
            )
        )
        points.append((1, [length], _best_of_two(run)))
    return points


def _step(runner: ModelRunner, samples: list[SampleState]) -> Point:
    tokens = len(samples[0].latents)
    seconds = _best_of_two(lambda: runner.denoise_step(samples))
    conditional = [tokens + len(sample.request.token_ids) for sample in samples]
    return 2, conditional + [tokens] * len(samples), seconds


def _decoding(runner: ModelRunner, sample: SampleState) -> Point:
    return 1, [len(sample.latents)], _best_of_two(lambda: _drain(runner.decode(sample)))


def _samples(runner: ModelRunner, size: tuple[int, int], batch: int) -> list[SampleState]:
    state = RequestState(_request(size, (0,) * _PROMPT_LENS[0]))
    state.conditioning = _drain(runner.encode_prompt(state.request))
    return [runner.new_sample(state, 0) for _ in range(batch)]


def _request(size: tuple[int, int], token_ids: tuple[int, ...]) -> EngineRequest:
    return EngineRequest("warmup", token_ids, *size, seeds=(0,), sampling=_GUIDED)


def _drain(work: Generator[None, None, Any]) -> Any:
    while True:
        try:
            next(work)
        except StopIteration as stop:
            return stop.value


def _best_of_two(run: Callable[[], object]) -> float:
    """The first run pays for kernels and caches."""
    return min(_seconds(run) for _ in range(2))


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _fit(points: list[Point], squares: bool) -> LinearCost:
    """Least squares with no coefficient below zero: those that come out so are left out."""
    rows = np.array([[fixed, sum(lens), sum(n * n for n in lens)] for fixed, lens, _ in points], float)
    seconds = np.array([measured for _, _, measured in points])
    columns = [0, 1, 2] if squares else [0, 1]
    coefficients = np.zeros(3)
    for kept in _subsets(columns):
        solution = np.linalg.lstsq(rows[:, kept], seconds, rcond=None)[0]
        if (solution >= 0).all():
            coefficients[kept] = solution
            break
    return LinearCost(*map(float, coefficients))


def _subsets(columns: list[int]) -> Iterator[list[int]]:
    """All columns, then without the square, without the base, the length alone."""
    yield columns
    yield [0, 1]
    yield [1, *columns[2:]]
    yield [1]
