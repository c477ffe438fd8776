"""Compilation beside serving in a real worker, and when there is none."""

import asyncio
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.client.engine_client import EngineClient
from engine.compilation import compiled_blocks
from engine.compilation.compilation import Compilation
from engine.compilation.compile_beside import compile_beside
from engine.compilation.compiled_blocks import CompiledBlocks
from engine.config.model_config import ModelConfig
from engine.config.options import EngineOptions
from engine.messages import ImageDone, Notice
from engine.models.dit import PLAIN, compile_parts
from engine.models.resumable import drain
from engine.runner.model_runner import ModelRunner
from engine.runner.request_state import SampleState
from engine.worker.warmup import examples
from tests.engine import compiling_worker
from tests.engine.conftest import Checkpoints, Runners, finish, start
from tests.engine.fakes import request
from tests.engine.reference import Job

CONFIG = ModelConfig.load(Path(__file__).parents[3] / "models" / "demo")
SECONDS = 120


@pytest.fixture
def stance() -> Iterator[None]:
    """What loading sets for the whole process."""
    yield
    torch.compiler.set_stance("default")
    torch.compiler.reset()


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_real_worker_switches_while_it_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The forked process runs the model, after the worker has run it with all of its threads."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", "true")
    options = EngineOptions(("cpu",), dtype="float32", compile_after_seconds=0.01)
    client = EngineClient(CONFIG, options, compiling_worker.main)
    caplog.set_level(logging.INFO)
    await client.start()
    try:
        async with asyncio.timeout(SECONDS):
            before = await image(client)
            while "new requests use them" not in caplog.text:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert await image(client) == before
    finally:
        await client.close()
    assert "failed" not in caplog.text
    assert os.listdir(tmp_path), "a later worker starts earlier"


async def image(client: EngineClient) -> bytes:
    wanted = replace(request("one", steps=8), token_ids=client.tokenize("a red circle"))
    client.reserve(wanted)
    outputs = [output async for output in client.generate(wanted)]
    (made,) = (output.rgb for output in outputs if isinstance(output, ImageDone))
    return made


def beside(runner: ModelRunner, emit: Callable[[Any], None], **options: Any) -> Compilation | None:
    return compile_beside(runner, list, EngineOptions(("cpu",), **options), lambda: None, emit)


def test_without_a_compiler_nothing_happens(runner: ModelRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    sent: list[Any] = []
    assert beside(runner, sent.append) is None
    assert sent == [Notice(logging.INFO, "no C++ compiler found: the blocks are not compiled")]


@pytest.mark.parametrize("options", [{"compile": False}, {"compile": True}, {"uncond_device": "cpu"}])
def test_it_is_not_asked_for(
    runner: ModelRunner, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setenv("CXX", "true")
    sent: list[Any] = []
    assert beside(runner, sent.append) is not None
    assert beside(runner, sent.append, **options) is None
    assert not sent


def test_examples_are_made_with_all_layers(
    runner: ModelRunner, monkeypatch: pytest.MonkeyPatch, stance: None
) -> None:
    """Their modulations are cached, and requests with the same schedule use them."""
    monkeypatch.setattr(compiled_blocks, "_set_up_compiler", lambda threads: None)
    monkeypatch.setattr(compiled_blocks, "compile_parts", lambda: PLAIN)
    parts = []

    def none() -> list[list[SampleState]]:
        parts.append(runner.parts)
        return []

    drain(CompiledBlocks(runner, none).load())
    assert parts == [PLAIN]


def test_the_kinds_of_calls_cover_every_size_prompt_and_batch(
    checkpoints: Checkpoints, runners: Runners, monkeypatch: pytest.MonkeyPatch, stance: None
) -> None:
    """Traced, but not compiled, which takes long."""
    checkpoint = checkpoints("diffusers")
    plain, runner = runners("diffusers"), ModelRunner(runners("diffusers").pipeline, "cpu")
    monkeypatch.setattr(compiled_blocks, "_set_up_compiler", lambda threads: None)
    monkeypatch.setattr(compiled_blocks, "compile_parts", lambda: compile_parts("eager"))
    torch.compiler.reset()
    for _ in CompiledBlocks(runner, lambda: examples(runner, CONFIG)).load():
        pass
    jobs = [Job("a", 96, 64, (7.0, 1.0), seed=1), Job("HELLO " * 5, 96, 64, (7.0, 3.0), seed=2)]
    with torch.compiler.set_stance("fail_on_recompile"):
        for job in (*jobs, Job("a cat", 176, 96, (3.0, 3.0), seed=3)):
            sample = start(runner, checkpoint, job)
            sample.state.is_compiled = True
            wanted = finish(plain, start(plain, checkpoint, job)).latents
            torch.testing.assert_close(finish(runner, sample).latents, wanted, atol=1e-4, rtol=1e-4)
        batch = [start(runner, checkpoint, job) for job in (*jobs, *jobs)]
        for sample in batch:
            sample.state.is_compiled = True
        runner.denoise_step(batch)
