"""One checkpoint and one engine for each layout, shared by the session: tests must not change them."""

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.checkpoint.loader import load_pipeline
from engine.config.part_folders import PartFolders
from engine.models.resumable import drain
from engine.request import EngineRequest, SamplingParams, SourceImage
from engine.runner.model_runner import ModelRunner
from engine.runner.request_state import RequestState, SampleState
from tests.engine.checkpoints import LAYOUTS, Checkpoint, write_checkpoint
from tests.engine.reference import Job, token_ids

Checkpoints = Callable[[str], Checkpoint]
# Stored outputs of the published implementation: named by IDEOSERVE_REFERENCE, or beside the checkout.
REFERENCE = Path(
    os.environ.get("IDEOSERVE_REFERENCE", Path(__file__).parents[2].parent / "shared" / "reference")
)
collect_ignore = [] if REFERENCE.is_dir() else ["checkpoint/test_goldens.py"]

Runners = Callable[[str], ModelRunner]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """The checkpoint of a layout, written at first use."""
    return lru_cache(lambda layout: write_checkpoint(tmp_path_factory.mktemp(layout), layout))


@pytest.fixture(scope="session")
def runners(checkpoints: Checkpoints) -> Runners:
    """The engine's runner of a layout, in float32 on the CPU."""
    return lru_cache(lambda layout: load_runner(checkpoints(layout).path, torch.float32))


@pytest.fixture(scope="session", params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def checkpoint(checkpoints: Checkpoints) -> Checkpoint:
    """Of the diffusers layout, for tests where the layout plays no part."""
    return checkpoints("diffusers")


@pytest.fixture(scope="session")
def runner(runners: Runners) -> ModelRunner:
    """Of the diffusers layout, for tests where the layout plays no part."""
    return runners("diffusers")


def load_runner(path: Path, dtype: torch.dtype) -> ModelRunner:
    return ModelRunner(load_pipeline(PartFolders.of(path), "cpu", dtype), "cpu")


def start(
    runner: ModelRunner, checkpoint: Checkpoint, job: Job, source: SourceImage | None = None
) -> SampleState:
    """The job's sample at its first step."""
    request = EngineRequest(
        request_id=f"request-{job.seed}",
        token_ids=tuple(token_ids(checkpoint.referee, job.prompt)),
        width=job.width,
        height=job.height,
        seeds=(job.seed,),
        sampling=SamplingParams(job.guidance, job.mu, job.std),
        source=source,
    )
    state = RequestState(request)
    (state.conditioning,) = drain(runner.encode([request]))
    if request.encodes_source:
        (state.source,) = drain(runner.encode_sources([request]))
    return runner.new_sample(state, 0)


def finish(runner: ModelRunner, sample: SampleState) -> SampleState:
    finish_all(runner, [sample])
    return sample


def finish_all(runner: ModelRunner, samples: list[SampleState]) -> None:
    """In one batch, which those that are done leave."""
    while running := [sample for sample in samples if not sample.is_finished]:
        runner.denoise_step(running)


def rgb(runner: ModelRunner, sample: SampleState) -> NDArray[np.int64]:
    """The decoded image (height, width, 3), wide enough to subtract."""
    width, height = sample.request.resolution
    (decoded,) = drain(runner.decode([sample]))
    assert isinstance(decoded, bytes), decoded
    pixels = np.frombuffer(decoded, np.uint8)
    return pixels.reshape(height, width, 3).astype(np.int64)


def relative(actual: Tensor, expected: Tensor) -> float:
    """The norm of the difference, of the expected one's; in float64."""
    actual, expected = actual.cpu().double(), expected.cpu().double()
    return float((actual - expected).norm() / expected.norm())
