"""Begins the encode or decode of a batch, which then runs in slices. Torch-free."""

from collections.abc import Callable

from engine.models.resumable import ResumableTask
from engine.runner.request_state import BatchTask, DecodeTask, EncodeTask, RequestState, SampleState
from engine.worker.runner_port import Runner

Clock = Callable[[], float]


def begin_encode(runner: Runner, requests: list[RequestState], clock: Clock) -> EncodeTask:
    """Begin to encode these requests' prompts; if some are cached, only those, so that they need not wait."""
    cached = [state for state in requests if runner.is_cached(state.request)]
    members = cached or requests
    prompts = {state.request.token_ids for state in members if not cached}
    parts = runner.encode([state.request for state in members])
    task = BatchTask(members, members, list(map(len, prompts)), ResumableTask(parts, clock))
    for state in members:
        state.task, state.started = task, state.started or clock()
    return task


def begin_decode(runner: Runner, samples: list[SampleState], tokens: int, clock: Clock) -> DecodeTask:
    """Begin to decode these samples, of `tokens` each."""
    states = [sample.state for sample in samples]
    parts = runner.decode(samples)
    task = BatchTask(samples, states, [tokens] * len(samples), ResumableTask(parts, clock))
    for sample in samples:
        sample.task = task
    return task
