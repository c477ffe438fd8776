"""Worker processes without a model. A request's id says what it does."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.config.model_config import ModelConfig
from engine.config.options import EngineOptions
from engine.cost import CostModel
from engine.errors import CheckpointError
from engine.messages import WorkerReady
from engine.runner.request_state import SampleState
from engine.scheduling.batch_limits import BatchLimits
from engine.scheduling.scheduler import Scheduler
from engine.worker import main as worker
from engine.worker.core import EngineCore
from tests.engine.fakes import COST, FakeRunner


def main(*args: Any) -> None:
    """Ready at once. A request whose id is `ACTION:...` runs that one of ACTIONS in each of its steps."""
    worker._load = _load
    worker.main(*args)


def measured_wrong(*args: Any) -> None:
    """Predicts eight times the time that its work takes."""

    def load(emit: worker.Emit, config: ModelConfig, options: EngineOptions, _: str | None) -> EngineCore:
        runner = FakeRunner()
        return _core(emit, options, runner, COST.scaled(8, 8, 8), runner.clock)

    worker._load = load
    worker.main(*args)


def slow_to_start(*args: Any) -> None:
    """Never ready."""
    time.sleep(3600)


def ends_while_loading(*args: Any) -> None:
    os._exit(7)


def raises_while_loading(*args: Any) -> None:
    def load(*_: Any) -> EngineCore:
        raise RuntimeError("no such device")

    worker._load = load
    worker.main(*args)


def has_no_checkpoint(*args: Any) -> None:
    def load(*_: Any) -> EngineCore:
        raise CheckpointError("model.safetensors: missing key x")

    worker._load = load
    worker.main(*args)


def loads_or_has_no_checkpoint(*args: Any) -> None:
    """Device `slow` never becomes ready; others have no checkpoint."""
    (slow_to_start if args[3] == "slow" else has_no_checkpoint)(*args)


def fails_until_file_exists(*args: Any) -> None:
    """Device `exit:FILE` exits while loading, and `checkpoint:FILE` has no checkpoint, until FILE exists."""
    action, _, file = args[3].partition(":")
    is_valid = not file or Path(file).exists()
    (main if is_valid else {"exit": ends_while_loading, "checkpoint": has_no_checkpoint}[action])(*args)


def _load(emit: worker.Emit, config: ModelConfig, options: EngineOptions, device: str | None) -> EngineCore:
    return _core(emit, options, FakeRunner(before_step=_act), COST, time.monotonic)


def _core(
    emit: worker.Emit,
    options: EngineOptions,
    runner: FakeRunner,
    cost: CostModel,
    clock: Callable[[], float],
) -> EngineCore:
    cost = replace(cost, max_batch_size=options.max_batch_size, max_batch_tokens=options.max_batch_tokens)
    emit(WorkerReady(cost, 0))
    return EngineCore(runner, Scheduler(cost, BatchLimits(cost), options.max_running), emit, clock)


def _act(samples: list[SampleState]) -> None:
    for sample in samples:
        action, _, rest = sample.request.request_id.partition(":")
        if action in ACTIONS:
            ACTIONS[action](rest)


def _once(path: str) -> bool:
    """Whether this is the first worker that calls it with `path`."""
    is_first = not Path(path).exists()
    Path(path).touch()
    return is_first


def _leave_a_child(path: str) -> None:
    """Exit, and leave a child process that holds the pipe open. Its process id is in the file."""
    if not _once(path):
        return
    child = os.fork()
    if child == 0:
        time.sleep(3600)
    Path(path).write_text(str(child))
    os._exit(3)


ACTIONS = {
    "raise": lambda rest: (_ for _ in ()).throw(ValueError(rest)),
    "exit": lambda rest: os._exit(3),
    "exit-once": lambda rest: _once(rest) and os._exit(3),
    "stop-once": lambda rest: _once(rest) and os.kill(os.getpid(), signal.SIGSTOP),
    "stop": lambda rest: os.kill(os.getpid(), signal.SIGSTOP),
    "slow": lambda rest: time.sleep(0.01),
    "slower": lambda rest: time.sleep(0.3),
    "leave-a-child": _leave_a_child,
    "hold": lambda rest: time.sleep(3600),
}
