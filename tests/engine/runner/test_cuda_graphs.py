"""Recorded passes, with a fake recording that runs the pass again on the recorded addresses."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from engine.checkpoint.loader import load_pipeline
from engine.config.part_folders import PartFolders
from engine.runner import cuda_graphs as graphs
from engine.runner.model_runner import ModelRunner
from tests.engine.checkpoints import Checkpoint
from tests.engine.conftest import finish, start
from tests.engine.reference import Job

WIDE = Job("a", 96, 64, (7.0, 3.0, 7.0, 3.0), seed=1)
TALL = Job("a poster that says HELLO", 64, 96, (7.0, 3.0, 7.0, 3.0), seed=2)


class Rerun:
    """Like a CUDA graph, writes each result to the same address."""

    def __init__(self, run: Callable[[], Tensor]) -> None:
        self.run, self.result, self.replays = run, run().clone(), 0

    def replay(self) -> Tensor:
        self.replays += 1
        return self.result.copy_(self.run())


class Recorder:
    def __init__(self) -> None:
        self.made: list[Rerun] = []

    def __call__(self, run: Callable[[], Tensor]) -> Rerun:
        self.made.append(Rerun(run))
        return self.made[-1]


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def recording(checkpoint: Checkpoint, recorder: Recorder) -> ModelRunner:
    pipeline = load_pipeline(PartFolders.of(checkpoint.path), "cpu", torch.float32)
    return ModelRunner(pipeline, "cpu", recorder=lambda _: recorder)


def test_the_latents_are_the_same_and_one_recording_serves_all_of_a_shape(
    checkpoint: Checkpoint, runner: ModelRunner, recording: ModelRunner, recorder: Recorder
) -> None:
    """Both jobs have 24 image tokens, with different grids and prompt lengths."""
    for job in (WIDE, TALL):
        wanted = finish(runner, start(runner, checkpoint, job)).latents
        assert torch.equal(finish(recording, start(recording, checkpoint, job)).latents, wanted)
    first, unconditional, second = (made.replays for made in recorder.made)
    assert (first, second) == (3, 3)  # of 4 passes with the prompt the first ran as it was
    assert unconditional == 7  # of both jobs


def test_a_batch_has_a_separate_recording(
    checkpoint: Checkpoint, runner: ModelRunner, recording: ModelRunner, recorder: Recorder
) -> None:
    jobs = (WIDE, Job("b", 96, 64, WIDE.guidance, seed=3))
    alone = start(recording, checkpoint, WIDE)
    recording.denoise_step([alone])
    recording.denoise_step([alone])
    assert [made.replays for made in recorder.made] == [1, 1]
    wanted, samples = ([start(each, checkpoint, job) for job in jobs] for each in (runner, recording))
    for _ in WIDE.guidance:
        runner.denoise_step(wanted)
        recording.denoise_step(samples)
    for one, other in zip(wanted, samples, strict=True):
        assert torch.equal(one.latents, other.latents)
    assert [made.replays for made in recorder.made] == [1, 1, 3, 3]


def test_the_least_recently_used_recording_is_dropped(
    checkpoint: Checkpoint, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "GRAPH_SHAPES", 1)
    recording = ModelRunner(
        load_pipeline(PartFolders.of(checkpoint.path), "cpu", torch.float32),
        "cpu",
        recorder=lambda _: recorder,
    )
    larger = Job("a", 96, 96, (7.0, 7.0), seed=4)
    for job in (WIDE, larger, WIDE):
        finish(recording, start(recording, checkpoint, job))
    assert len(recorder.made) == 2 * 3  # of both transformers


def test_a_large_pass_is_not_recorded(
    checkpoint: Checkpoint, recording: ModelRunner, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the unconditional pass, of 24 image tokens without a prompt, is small enough."""
    monkeypatch.setattr(graphs, "GRAPH_TOKENS", 24)
    finish(recording, start(recording, checkpoint, WIDE))
    assert [made.replays for made in recorder.made] == [3]
