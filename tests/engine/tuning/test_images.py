"""Every candidate makes the same image: within 1 of 255, on the demo model in float32."""

import numpy as np
import pytest
import torch

from engine.checkpoint.loader import load_pipeline
from engine.kernels.candidates import Machine
from engine.runner.model_runner import ModelRunner
from engine.tuning.cases import OPERATIONS
from engine.tuning.store import ChoiceStore
from engine.tuning.tuner import tune
from tests.engine.runner.test_batch_equality import CONFIG, Picture, request, run

REQUEST = request(7)
MACHINE = Machine("cpu", torch.float32)
# Of the demo model, whose attention has pins of its own below.
DEFAULTS = {
    name: candidates[0].name
    for name, candidates in OPERATIONS.items()
    if name not in ("causal_attention", "nf4_linear")
}
# For `pieces` the demo model has too few columns, and for `stacked` adapters are needed.
OTHERS = [
    (name, candidate.name)
    for name, candidates in OPERATIONS.items()
    for candidate in candidates[1:]
    if candidate.is_correct(MACHINE) and candidate.name not in ("pieces", "stacked")
]


def picture(**pins: str) -> Picture:
    pipeline = load_pipeline(CONFIG.folders, "cpu", torch.float32)
    shapes = {"attention.32.medium": "native", "attention.32.long": "native"}  # no `batched`
    tune(pipeline, CONFIG, tuple((shapes | DEFAULTS | pins).items()), ChoiceStore(None))
    return run(ModelRunner(pipeline, "cpu"), [REQUEST])[REQUEST.request_id, 0]


@pytest.fixture(scope="module")
def default() -> Picture:
    return picture()


@pytest.mark.parametrize(("operation", "candidate"), OTHERS)
def test_a_candidate_makes_the_same_image(default: Picture, operation: str, candidate: str) -> None:
    assert int(np.abs(picture(**{operation: candidate}) - default).max()) <= 1
