"""Decides whether and when the blocks are compiled beside serving."""

import contextlib
import hashlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from engine.compilation.compilation import Compilation
from engine.compilation.compiled_blocks import CompiledBlocks
from engine.compilation.forked_task import ForkedTask
from engine.config.options import EngineOptions
from engine.messages import FromWorker, Notice
from engine.runner.model_runner import ModelRunner
from engine.runner.request_state import SampleState

# Share of the seconds to wait if the compiler's disk cache holds the result of an earlier process.
_EARLY = 1 / 12


def compile_beside(
    runner: ModelRunner,
    examples: Callable[[], list[list[SampleState]]],
    options: EngineOptions,
    switch: Callable[[], None],
    emit: Callable[[FromWorker], None],
) -> Compilation | None:
    """None unless `options.compile` is "auto", on a CPU with a compiler.

    See `CompiledBlocks` about `examples`, and `Compilation` about `switch` and `emit`.
    """
    if options.compile != "auto" or not _can_fork(runner, options):
        return None
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        emit(Notice(logging.INFO, "no C++ compiler found: the blocks are not compiled"))
        return None
    blocks = CompiledBlocks(runner, examples)
    marker = _marker(runner)

    def compile_to_disk() -> None:
        torch.set_num_threads(1)  # a forked process lacks the other threads
        blocks.compile_to_disk()
        with contextlib.suppress(OSError):
            marker.touch()

    seconds = options.compile_after_seconds * (_EARLY if marker.exists() else 1)
    return Compilation(
        lambda: ForkedTask(compile_to_disk), blocks.load, runner.denoise_step, switch, emit, seconds
    )


def _can_fork(runner: ModelRunner, options: EngineOptions) -> bool:
    """The forked process has no thread for a second device."""
    return sys.platform == "linux" and runner.device.torch.type == "cpu" and not options.uncond_device


def _marker(runner: ModelRunner) -> Path:
    """A file beside the compiler's disk cache that exists once code for such a model was compiled."""
    folder = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", tempfile.gettempdir()))
    dits = (runner.pipeline.conditional, runner.pipeline.unconditional)
    facts = [(dit.config, dit.dtype) for dit in dits]
    key = repr((os.getuid(), torch.__version__, torch.get_num_threads(), facts)).encode()
    return folder / f"ideoserve-compiled-{hashlib.sha256(key).hexdigest()[:16]}"
