"""Adapters in a real worker process, in which one transformer runs both passes."""

import asyncio
import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.adapters.store import AdapterStore
from engine.checkpoint.loader import load_pipeline
from engine.client.engine_client import EngineClient
from engine.config.options import EngineOptions
from engine.errors import GenerationError, OptionError
from engine.request import AdapterUse, EngineRequest
from engine.runner.model_runner import ModelRunner
from engine.tuning.tuner import loaded_folders
from tests.engine.adapters.files import Tensors, comfyui, peft, write
from tests.engine.adapters.uses import Held
from tests.engine.runner.test_batch_equality import CONFIG, assert_same, generate, ready, request, run


@pytest.fixture(scope="module")
def imitating(tmp_path_factory: pytest.TempPathFactory) -> EngineOptions:
    """Options of an engine in which one transformer runs both passes. The adapter has a key to be ignored."""
    file = tmp_path_factory.mktemp("adapters") / "imitation.safetensors"
    tensors = halved(comfyui(load_pipeline(CONFIG.folders, "cpu", torch.float32).conditional.config))
    write(file, tensors | {"x.dora_scale": torch.zeros(1)})
    return EngineOptions(
        ("cpu",),
        dtype="float32",
        adapter_memory_gb=0.01,
        adapter_ignore=("*.dora_scale",),
        uncond_adapter=str(file),
    )


@pytest.fixture(scope="module")
def runner(imitating: EngineOptions) -> ModelRunner:
    """The same in this process."""
    pipeline = load_pipeline(loaded_folders(CONFIG.folders, imitating), "cpu", torch.float32)
    assert pipeline.unconditional is pipeline.conditional
    held = Held()
    imitation = AdapterStore.of(pipeline, imitating).load(str(imitating.uncond_adapter))
    return ModelRunner(pipeline, "cpu", adapters=held, uncond_adapter=imitation)


def halved(tensors: Tensors) -> Tensors:
    return {key: tensor / 2 for key, tensor in tensors.items()}


def using(wanted: EngineRequest, request_id: str, *uses: AdapterUse) -> EngineRequest:
    return replace(wanted, request_id=request_id, adapters=uses)


def test_a_worker_loads_adapters_and_runs_requests_with_and_without(
    imitating: EngineOptions, runner: ModelRunner, tmp_path: Path
) -> None:
    """The images are those that the runner makes alone. A file that was replaced fails its request only."""
    file = write(tmp_path / "style.safetensors", halved(peft(runner.pipeline.conditional.config, seed=1)))
    held, wanted = runner._adapters._held, request(7)
    assert isinstance(held, Held)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    use = replace(held.use(runner, file, scale=0.6), digest=digest)
    held[digest] = held[str(file)]
    replaced = replace(use, digest="0" * 64)
    plain, adapted = using(wanted, "plain"), using(wanted, "adapted", use)
    alone = [run(runner, [each])[each.request_id, 0] for each in (plain, adapted)]
    assert abs(alone[0] - alone[1]).max() > 20

    async def main() -> None:
        client = EngineClient(CONFIG, imitating)
        await client.start()
        try:
            await ready(client)
            assert client.speeds()[0].cost.adapter.per_unit > 0
            requests = (plain, adapted, using(wanted, "replaced", replaced))
            made = await asyncio.gather(
                *(generate(client, each) for each in requests), return_exceptions=True
            )
            assert isinstance(made[2], GenerationError)
            assert str(made[2]) == f"AdapterError: {file}: the file has changed"
            for picture, expected in zip(made, alone, strict=False):
                assert not isinstance(picture, BaseException)
                assert_same(picture, expected)
        finally:
            await client.close()

    asyncio.run(main())


def test_a_broken_adapter_of_the_unconditional_pass_names_the_option(
    imitating: EngineOptions, runner: ModelRunner
) -> None:
    store = AdapterStore.of(runner.pipeline, replace(imitating, adapter_ignore=()))
    with pytest.raises(OptionError, match=r"--uncond-adapter: .*imitation\.safetensors: x\.dora_scale: DoRA"):
        store.load(str(imitating.uncond_adapter))


def test_one_transformer_for_both_passes_has_one_device(imitating: EngineOptions) -> None:
    with pytest.raises(OptionError, match="--uncond-device"):
        loaded_folders(CONFIG.folders, replace(imitating, uncond_device="cpu"))
