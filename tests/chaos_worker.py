"""A worker that raises at the denoising step that a sample's seed encodes."""

from collections.abc import Sequence
from typing import Any

from engine.runner.request_state import SampleState
from engine.worker import main as worker

# A sample with the seed FAILS + k raises at step k.
FAILS = 1_000_000


def main(*args: Any) -> None:
    from engine.runner.model_runner import ModelRunner

    original = ModelRunner.denoise_step

    def denoise_step(self: ModelRunner, samples: Sequence[SampleState]) -> None:
        for sample in samples:
            if sample.request.seeds[sample.image_index] - FAILS == sample.step_index:
                raise RuntimeError("chaos")
        original(self, samples)

    ModelRunner.denoise_step = denoise_step  # type: ignore[method-assign]
    worker.main(*args)
