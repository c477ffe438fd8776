"""`python -m benchmarks.paced_server FLAGS`: a server whose devices have a fixed speed.

The model runs as usual, then the worker sleeps until the time of the step is over, so that several workers
do not compete for the processors of one machine. PACE is the milliseconds of a step of a 64x64 image; the
time is proportional to the number of pixels, and batches bring no gain, as with large images on a GPU.
"""

import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

if TYPE_CHECKING:
    from engine.runner.request_state import SampleState


def step_seconds(width: int, height: int, pace: float) -> float:
    """Duration of a step of one image; `pace` is in milliseconds."""
    return pace / 1000 * width * height / 64**2


def work(*arguments: Any) -> None:
    """Run a worker whose steps take at least their time."""
    from engine.runner.model_runner import ModelRunner
    from engine.worker import main as worker

    step, pace = ModelRunner.denoise_step, float(os.environ["PACE"])

    def denoise_step(runner: ModelRunner, samples: "Sequence[SampleState]") -> None:
        end = time.perf_counter() + sum(step_seconds(*each.request.resolution, pace) for each in samples)
        step(runner, samples)
        time.sleep(max(0.0, end - time.perf_counter()))  # the pace of the device is what is set

    with patch("engine.runner.model_runner.ModelRunner.denoise_step", denoise_step):
        worker.main(*arguments)


if __name__ == "__main__":
    from engine.client.engine_client import EngineClient
    from server.__main__ import main

    with patch("server.__main__.EngineClient", partial(EngineClient, worker_target=work)):
        sys.exit(main(sys.argv[1:]))
