"""Compiles the blocks of a loaded model in another process, and loads the result from torch's disk cache."""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from engine.models.dit import PLAIN, BlockParts, compile_parts
from engine.runner.model_runner import ModelRunner
from engine.runner.request_state import SampleState

# Index of the part in BlockParts, and its arguments.
_Call = tuple[int, tuple[Any, ...]]


class CompiledBlocks:
    """The compiled blocks of a runner on a CPU.

    `examples` makes the batches whose calls are compiled: one sample, and several with different prompt
    lengths.
    """

    def __init__(self, runner: ModelRunner, examples: Callable[[], list[list[SampleState]]]) -> None:
        self._runner = runner
        self._examples = examples
        self._threads = torch.get_num_threads()

    def compile_to_disk(self) -> None:
        """Compile every kind of call, for the number of threads at the time of construction."""
        _set_up_compiler(self._threads)
        from torch._inductor.compile_fx import compile_fx

        def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
            compile_fx(graph, inputs)
            return graph.forward

        parts = compile_parts(backend)
        for call in self._calls():
            _run(parts, call)

    def load(self) -> Generator[None, None, None]:
        """Load what `compile_to_disk` has compiled. Yields wherever the caller may run other work."""
        _set_up_compiler(self._threads)
        yield
        parts = compile_parts()
        for call in self._calls():
            _run(parts, call)
            yield
        # A call of another kind runs plain, instead of waiting for the compiler.
        torch.compiler.set_stance("eager_on_recompile")
        self._runner.compiled_parts = parts

    def _calls(self) -> Iterator[_Call]:
        """One call of each kind that the examples make. The first and the last layer have their own."""
        calls: dict[Any, _Call] = {}

        def recording(index: int, part: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any) -> Any:
                calls.setdefault((index, *map(_kind, args)), (index, args))
                return part(*args)

            return call

        recorded = BlockParts(*(recording(index, part) for index, part in enumerate(PLAIN)))
        examples = self._examples()  # with all layers, since their modulations may be cached
        with _running(self._runner, recorded, layers=3):
            for samples in examples:
                self._runner.denoise_step(samples)
        yield from calls.values()


@contextmanager
def _running(runner: ModelRunner, parts: BlockParts, layers: int) -> Iterator[None]:
    """Run `parts` of the first blocks only. The results are meaningless."""
    before = runner.parts
    kept = {dit: dit.layers for dit in (runner.pipeline.conditional, runner.pipeline.unconditional)}
    runner.parts = parts
    for dit in kept:
        dit.layers = dit.layers[:layers]
    try:
        yield
    finally:
        runner.parts = before
        for dit, all_layers in kept.items():
            dit.layers = all_layers


@torch.inference_mode()
def _run(parts: BlockParts, call: _Call) -> None:
    index, args = call
    parts[index](*args)


def _kind(argument: Any) -> Any:
    """What compiled code may depend on: the layout of a tensor, and not which block it is."""
    if not isinstance(argument, Tensor):
        return type(argument)
    return argument.shape, argument.stride(), argument.dtype, argument.storage_offset() == 0


def _set_up_compiler(threads: int) -> None:
    """Import the compiler, which generates code for this number of threads and starts no processes."""
    from torch._inductor import config

    config.compile_threads = 1
    config.cpp.threads = threads
