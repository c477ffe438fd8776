"""Quantised weights on a GPU: products in fp8 against their definition, widened against stored weights."""

import pytest
import torch
from torch import Tensor, nn

from engine.checkpoint.loader import load_pipeline
from engine.config.part_folders import PartFolders
from engine.kernels.candidates import Machine
from engine.models.dit import compile_parts
from engine.precision import PrecisionOptions, Quantization
from engine.quantized import nf4_product
from engine.quantized.fp8 import Fp8Linear, to_fp8
from engine.quantized.fp8_product import Fp8Product
from engine.quantized.quantize import quantized
from engine.runner.model_runner import ModelRunner
from engine.tuning.store import ChoiceStore
from engine.tuning.weights import check_device, widen_weights
from tests.engine.conftest import Checkpoints, finish, relative, start
from tests.engine.reference import Job

CUDA = torch.device("cuda")
# Inputs and outputs of the published transformer's blocks.
SHAPES = {"qkv": (4608, 13824), "o": (4608, 4608), "w13": (4608, 24576), "w2": (12288, 4608)}
TOKENS = (1, 17, 1078, 4150)


def layer(shape: tuple[int, int], kind: Quantization, bias: bool = False) -> nn.Module:
    torch.manual_seed(0)
    linear = nn.Linear(*shape, bias=bias, device=CUDA, dtype=torch.bfloat16).requires_grad_(False)
    return quantized(linear, kind)


def activations(tokens: int, width: int) -> Tensor:
    """With outliers, as activations have."""
    x = torch.randn(tokens, width, device=CUDA)
    x[:, ::97] *= 30
    return x.bfloat16()


@pytest.fixture(autouse=True)
def _needs_fp8() -> None:
    check_device(PrecisionOptions(matmul="fp8"), CUDA, torch.bfloat16)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_product_is_its_definition(shape: tuple[int, int], compiled: bool) -> None:
    stored = layer(shape, "fp8")
    assert isinstance(stored, Fp8Linear)
    product: nn.Module = Fp8Product(stored)
    run = torch.compile(product, dynamic=True) if compiled else product
    weight = stored.weight.float() * stored.weight_scale.unsqueeze(1)
    with torch.inference_mode():
        for tokens in TOKENS:
            x = activations(tokens, shape[0])
            token, scale = to_fp8(x)
            expected = (token.float() * scale) @ weight.T
            assert relative(run(x), expected) < 5e-3


@pytest.mark.parametrize("bias", [True, False])
def test_a_product_with_bias(bias: bool) -> None:
    stored = layer((512, 1024), "fp8", bias)
    assert isinstance(stored, Fp8Linear)
    x = activations(9, 512)
    assert relative(Fp8Product(stored)(x), stored(x)) < 0.05


@pytest.mark.parametrize("kind", ["fp8", "nf4"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_widened_weights_give_the_same_bits(shape: tuple[int, int], kind: Quantization) -> None:
    quantised = layer(shape, kind)
    inputs = [activations(tokens, shape[0]) for tokens in TOKENS]
    with torch.inference_mode():
        stored = [quantised(x) for x in inputs]
        quantised.widen(torch.bfloat16)  # type: ignore[operator]
        for x, expected in zip(inputs, stored, strict=True):
            assert torch.equal(quantised(x), expected)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_each_product_with_nf4_weights(shape: tuple[int, int]) -> None:
    """bitsandbytes', if it is installed."""
    quantised, machine = layer(shape, "nf4"), Machine("cuda", torch.bfloat16)
    for candidate in nf4_product.CANDIDATES:
        if candidate.is_correct(machine):
            for tokens in TOKENS:
                x = activations(tokens, shape[0])
                assert relative(candidate.run(quantised)(x), quantised(x)) < 1e-2


@pytest.mark.parametrize("compiled", [False, True])
def test_images_of_a_model_multiplied_in_fp8_are_close(checkpoints: Checkpoints, compiled: bool) -> None:
    checkpoint, job = checkpoints("official-fp8"), Job("a poster that says HELLO", 256, 256, (7.0,) * 4)
    latents = []
    for options in (PrecisionOptions("stored"), PrecisionOptions("stored", "fp8")):
        folders = PartFolders.of(checkpoint.path)
        runner = ModelRunner(load_pipeline(folders, CUDA, torch.bfloat16, precision=options), CUDA)
        if compiled:
            runner.parts = runner.compiled_parts = compile_parts()
        latents.append(finish(runner, start(runner, checkpoint, job)).latents)
    assert 0 < relative(latents[1], latents[0]) < 0.2


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("layout", ["official-fp8", "official-nf4"])
def test_a_widened_model_makes_the_same_latents(
    checkpoints: Checkpoints, layout: str, compiled: bool
) -> None:
    job, latents = Job("a poster that says HELLO", 256, 256, (7.0,) * 4), []
    for weights in ("stored", "widened"):
        folders = PartFolders.of(checkpoints(layout).path)
        pipeline = load_pipeline(folders, CUDA, torch.bfloat16)
        widen_weights(pipeline, PrecisionOptions(weights), (64,), ChoiceStore(None))  # type: ignore[arg-type]
        runner = ModelRunner(pipeline, CUDA, compiled=compiled)
        latents.append(finish(runner, start(runner, checkpoints(layout), job)).latents)
    assert torch.equal(*latents)
