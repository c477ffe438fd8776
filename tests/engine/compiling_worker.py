"""A worker with the real model whose compiled blocks are the plain ones, and always win."""

from typing import Any

from engine.worker import main as worker


def main(*args: Any) -> None:
    from engine.compilation import compilation, compiled_blocks
    from engine.models.dit import PLAIN

    def compile_to_disk(self: compiled_blocks.CompiledBlocks) -> None:
        """Run the model, as the compiler does."""
        assert len(list(self._calls())) > 2

    compiled_blocks.CompiledBlocks.compile_to_disk = compile_to_disk  # type: ignore[method-assign]
    compiled_blocks._set_up_compiler = lambda threads: None
    compiled_blocks.compile_parts = lambda: PLAIN  # type: ignore[assignment]
    compilation._GAIN = 0.0
    worker.main(*args)
