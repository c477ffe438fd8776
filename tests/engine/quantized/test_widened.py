"""Widened weights give the bits of stored ones; speed and free memory decide whether they are widened."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from engine.checkpoint.loader import Pipeline, load_pipeline
from engine.config.part_folders import PartFolders
from engine.errors import OptionError
from engine.precision import PrecisionOptions, Quantization, Weights
from engine.quantized.kept import precision_of, quantized_layers, widening_bytes
from engine.quantized.layer import QuantizedLinear
from engine.quantized.quantize import quantized
from engine.runner.model_runner import ModelRunner
from engine.tuning import weights
from engine.tuning.store import ChoiceStore
from engine.tuning.weights import check_device, fits, widen_weights
from tests.engine.conftest import Checkpoints, finish, start
from tests.engine.reference import Job

NOTHING = ChoiceStore(None)
ROWS = (7, 40)
CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["fp8", "nf4"])
def test_a_widened_layer_computes_the_same_bits(kind: Quantization, bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = quantized(nn.Linear(128, 72, bias).requires_grad_(False), kind)
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.to(dtype), requires_grad=False)
    x = torch.randn(9, 128).to(dtype)
    stored = layer(x)
    layer.widen(dtype)
    assert layer.weight.dtype == dtype
    assert torch.equal(layer(x), stored)


def load(checkpoints: Checkpoints, layout: str) -> Pipeline:
    return load_pipeline(PartFolders.of(checkpoints(layout).path), "cpu", torch.bfloat16)


def layers_of(pipeline: Pipeline) -> list[QuantizedLinear]:
    return list(quantized_layers(pipeline.conditional, pipeline.unconditional, pipeline.text_encoder))


@pytest.mark.parametrize("layout", ["official-fp8", "official-nf4"])
def test_a_widened_model_makes_the_same_latents(checkpoints: Checkpoints, layout: str) -> None:
    stored, widened = (load(checkpoints, layout) for _ in range(2))
    layers, before = layers_of(widened), sum(map(_bytes, layers_of(widened)))
    grows = widening_bytes(layers, torch.bfloat16)
    widen_weights(widened, PrecisionOptions("widened"), ROWS, NOTHING)
    assert sum(map(_bytes, layers)) == before + grows
    job, latents = Job("a poster", 96, 64, (7.0, 1.0)), []
    for pipeline in (stored, widened):
        runner = ModelRunner(pipeline, "cpu")
        latents.append(finish(runner, start(runner, checkpoints(layout), job)).latents)
    assert torch.equal(*latents)


def _bytes(layer: QuantizedLinear) -> int:
    return layer.weight.nbytes


Choose = Callable[..., bool]


@pytest.fixture(scope="module")
def loaded(checkpoints: Checkpoints) -> Pipeline:
    return load(checkpoints, "official-fp8")


@pytest.fixture
def choose(loaded: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Choose:
    """Whether weights are widened, where this is so fast and there is so much memory."""

    def choose(
        asked: Weights, time: float = 0.5, free: float = 1e12, quantize: Quantization | None = None
    ) -> bool:
        pipeline = copy.deepcopy(loaded)
        monkeypatch.setattr(weights, "race", lambda *_: {"stored": 1.0, "widened": time})
        monkeypatch.setattr(weights, "_free_bytes", lambda _: free)
        widen_weights(pipeline, PrecisionOptions(asked, quantize=quantize), ROWS, NOTHING)
        return precision_of(pipeline.conditional.layers, torch.bfloat16).widened

    return choose


def test_auto_widens_what_fits_and_is_faster(choose: Choose) -> None:
    assert choose("auto")
    assert not choose("auto", time=0.98)
    assert not choose("auto", free=1e5)
    assert not choose("auto", quantize="fp8")
    assert choose("widened", time=2.0)
    assert not choose("stored")


def test_widened_weights_that_do_not_fit_are_refused(choose: Choose) -> None:
    with pytest.raises(OptionError) as error:
        choose("widened", free=2e5)
    assert str(error.value).startswith("weights: widened needs 0.0 GB more on cpu, which has room for 0.0 GB")


def test_widened_weights_may_take_three_quarters_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "free_memory", lambda: 1000)
    assert fits(750, CPU)
    assert not fits(751, CPU)


def test_the_largest_layer_is_measured_for_real(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_SECONDS", 0.0)
    widen_weights(load(checkpoints, "official-nf4"), PrecisionOptions(), ROWS, NOTHING)


@pytest.mark.parametrize(
    ("capability", "dtype", "said"),
    [
        (
            (8, 0),
            torch.bfloat16,
            "matmul: fp8 needs a GPU of compute capability 8.9 or later, cuda:0 has 8.0",
        ),
        ((9, 0), torch.float32, "matmul: fp8 computes in bfloat16 on a GPU, and dtype is float32"),
        ((9, 0), torch.bfloat16, None),
    ],
)
def test_a_gpu_without_products_in_fp8_is_refused(
    capability: tuple[int, int], dtype: torch.dtype, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    device = torch.device("cuda:0")
    check_device(PrecisionOptions(), device, dtype)
    check_device(PrecisionOptions(matmul="fp8"), CPU, dtype)
    if said is None:
        check_device(PrecisionOptions(matmul="fp8"), device, dtype)
        return
    with pytest.raises(OptionError) as error:
        check_device(PrecisionOptions(matmul="fp8"), device, dtype)
    assert str(error.value) == said
