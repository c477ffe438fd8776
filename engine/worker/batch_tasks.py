"""Begins the encode or decode of a batch, which then runs in slices. Torch-free."""

from collections.abc import Callable
from typing import Any

from engine.cost import CostModel
from engine.models.resumable import ResumableTask
from engine.runner.request_state import BatchTask, DecodeTask, EncodeTask, RequestState, SampleState
from engine.scheduling.units import Encode
from engine.worker.runner_port import Runner

Clock = Callable[[], float]


def begin_encode(runner: Runner, unit: Encode, cost: CostModel, clock: Clock) -> EncodeTask:
    """Begin to encode the prompts or the sources of a unit's requests."""
    if unit.kind == "encode":
        return _begin_prompts(runner, unit.requests, clock)
    parts = runner.encode_sources([state.request for state in unit.requests])
    return _begin(unit.requests, _image_lengths(cost, unit.requests), ResumableTask(parts, clock))


def _begin_prompts(runner: Runner, requests: list[RequestState], clock: Clock) -> EncodeTask:
    """Begin to encode these requests' prompts; if some are cached, only those, so that they need not wait."""
    cached = [state for state in requests if runner.is_cached(state.request)]
    members = cached or requests
    prompts = {state.request.token_ids for state in members if not cached}
    for state in members:
        state.started = state.started or clock()
    parts = runner.encode([state.request for state in members])
    return _begin(members, list(map(len, prompts)), ResumableTask(parts, clock, runner.is_fetching))


def _begin(members: list[RequestState], lengths: list[int], work: ResumableTask[Any]) -> EncodeTask:
    task: EncodeTask = BatchTask(members, members, lengths, work)
    for state in members:
        state.task = task
    return task


def begin_decode(runner: Runner, samples: list[SampleState], cost: CostModel, clock: Clock) -> DecodeTask:
    """Begin to decode these samples."""
    states = [sample.state for sample in samples]
    parts, lengths = runner.decode(samples), _image_lengths(cost, states)
    task: DecodeTask = BatchTask(samples, states, lengths, ResumableTask(parts, clock))
    for sample in samples:
        sample.task = task
    return task


def _image_lengths(cost: CostModel, states: list[RequestState]) -> list[int]:
    """Tokens of an image of each request."""
    return [cost.image_tokens(*state.request.resolution) for state in states]
