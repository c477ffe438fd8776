"""Adapters that a test's requests use."""

from dataclasses import replace
from pathlib import Path

import torch

from engine.adapters.adapter import Adapter
from engine.adapters.adapter_file import both_configs
from engine.adapters.loading import load_adapter
from engine.models.resumable import drain
from engine.request import AdapterUse
from engine.runner.model_runner import ModelRunner
from engine.runner.request_state import RequestState, SampleState
from tests.engine.checkpoints import Checkpoint
from tests.engine.conftest import start
from tests.engine.reference import Job


class Held(dict[str, Adapter]):
    """Adapters in memory, by the name of their file."""

    def use(
        self, runner: ModelRunner, file: Path, scale: float = 1.0, first: int = 0, end: int = 100
    ) -> AdapterUse:
        """Load the file, and return a use of it."""
        pipeline = runner.pipeline
        configs = both_configs(pipeline.conditional.config, pipeline.unconditional.config)
        self[str(file)] = self.get(str(file)) or load_adapter(file, configs, torch.float32)
        return AdapterUse(file.stem, str(file), str(file), scale, first, end)


def begin(runner: ModelRunner, checkpoint: Checkpoint, job: Job, *uses: AdapterUse) -> SampleState:
    """The job's sample at step 0, with adapters."""
    state = RequestState(replace(start(runner, checkpoint, job).request, adapters=uses))
    (state.conditioning,) = drain(runner.encode([state.request]))
    return runner.new_sample(state, 0)
