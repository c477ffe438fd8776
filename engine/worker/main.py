"""Entry point of the worker process: loads a model and runs the step loop. Only `main` imports torch."""

import contextlib
import ctypes
import logging
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

from engine.channel import Outbox, receive
from engine.config.model_config import ModelConfig
from engine.config.options import EngineOptions
from engine.environment import set_up_environment
from engine.errors import CheckpointError, OptionError
from engine.messages import (
    Abort,
    FromWorker,
    Notice,
    Ping,
    Pong,
    Promote,
    Shutdown,
    WorkerFailed,
    WorkerReady,
)
from engine.request import EngineRequest
from engine.worker.adapter_wait import AdapterWait, Core
from engine.worker.phases import Phases

if TYPE_CHECKING:
    from engine.adapters.store import AdapterStore
    from engine.runner.model_runner import ModelRunner

Emit = Callable[[FromWorker], None]

_PR_SET_PDEATHSIG = 1


def main(connection: Connection, config: ModelConfig, options: EngineOptions, device: str | None) -> None:
    """Run the worker until it receives Shutdown or the client's end of the pipe is gone."""
    _tie_to_parent()
    set_up_environment()
    outbox = Outbox(connection)
    try:
        core = _load(outbox.emit, config, options, device)
    except Exception as error:
        is_permanent = isinstance(error, CheckpointError | OptionError)
        reason = str(error) if is_permanent else f"{type(error).__name__}: {error}"
        outbox.emit(WorkerFailed(reason, is_permanent))
    else:
        with contextlib.suppress(EOFError):
            _loop(connection, outbox, core)
    outbox.flush()


def _load(emit: Emit, config: ModelConfig, options: EngineOptions, device: str | None) -> Core:
    phases = Phases()
    from engine.compilation.compile_beside import compile_beside
    from engine.scheduling.batch_limits import BatchLimits
    from engine.scheduling.scheduler import Scheduler
    from engine.worker.core import EngineCore
    from engine.worker.warmup import examples, measure

    runner, adapters = _build_runner(emit, config, options, device, phases)
    cost = measure(runner, config, options)
    runner.clear_cache()
    phases.end("warm-up")
    scheduler = Scheduler(cost, BatchLimits(cost), options.max_running)
    compilation = compile_beside(
        runner, lambda: examples(runner, config), options, scheduler.use_compiled_blocks, emit
    )
    core = EngineCore(runner, scheduler, emit, compilation=compilation)
    emit(WorkerReady(cost, runner.device.peak_memory_bytes(), runner.precision))
    emit(Notice(logging.INFO, str(phases), phases.fields()))
    return AdapterWait(core, adapters, lambda: scheduler.adapters_in_use, emit)


def _build_runner(
    emit: Emit, config: ModelConfig, options: EngineOptions, device: str | None, phases: Phases
) -> tuple["ModelRunner", "AdapterStore"]:
    from engine.adapters.store import AdapterStore
    from engine.runner.cuda_graphs import cuda_recorder
    from engine.runner.device import choose_device, set_up_cpu
    from engine.runner.model_runner import ModelRunner
    from engine.tuning.tuner import load_tuned

    phases.end("imports")
    chosen = choose_device(device)
    if chosen.type == "cpu":
        set_up_cpu(max(1, len(options.devices)))
    pipeline, tuning = load_tuned(config, options, chosen)
    emit(Notice(logging.INFO, "weights loaded", _load_rate(pipeline.weight_bytes, pipeline.load_seconds)))
    emit(Notice(logging.INFO, "kernels chosen", tuning.fields()))
    compiled = chosen.type == "cuda" if options.compile == "auto" else options.compile
    recorder = cuda_recorder if options.cuda_graphs and chosen.type == "cuda" else None
    adapters = AdapterStore.of(pipeline, options)
    imitation = adapters.load(options.uncond_adapter) if options.uncond_adapter else None
    runner = ModelRunner(pipeline, chosen, options.uncond_device, compiled, recorder, adapters, imitation)
    emit(Notice(logging.INFO, "precision", asdict(runner.precision)))
    phases.end("load")
    return runner, adapters


def _load_rate(size: int, seconds: float) -> dict[str, object]:
    rates = {"gb": size / 1e9, "seconds": seconds, "gb_per_second": size / 1e9 / max(seconds, 1e-9)}
    return {name: round(value, 3) for name, value in rates.items()}


def _loop(connection: Connection, outbox: Outbox, core: Core) -> None:
    """Handle all messages, then run one unit of work, repeatedly. Wait for messages only if there is no work.

    Raises EOFError once the client is gone.
    """
    while True:
        if not core.has_work:
            outbox.flush()
        while _has_messages(connection, core):
            for message in receive(connection):
                match message:
                    case EngineRequest():
                        core.add(message)
                    case Abort(request_id):
                        core.abort(request_id)
                    case Promote(request_id, priority):
                        core.promote(request_id, priority)
                    case Ping():
                        outbox.emit(Pong())
                        outbox.flush()
                    case Shutdown():
                        return
        core.step()


def _has_messages(connection: Connection, core: Core) -> bool:
    """Wait for messages if there is no work, or for the end of a task or of loading beside it."""
    if core.has_work:
        return connection.poll(0)
    task = core.compilation and core.compilation.task
    beside = [task.fileno()] if task else []
    if isinstance(core, AdapterWait):
        beside.append(core.fileno())
    return connection in wait([connection, *beside])


def _tie_to_parent() -> None:
    """Ignore signals to the process group, because the server shuts its workers down, and die if it dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        # A worker that hangs or is stopped does not notice the closed pipe.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
