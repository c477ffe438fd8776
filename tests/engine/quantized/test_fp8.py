"""fp8 weights and products in fp8, compared with their definitions."""

import re

import pytest
import torch
from torch import Tensor, nn

from engine.checkpoint.loader import load_pipeline
from engine.config.part_folders import PartFolders
from engine.kernels.norm import RMSNorm
from engine.precision import PrecisionOptions, stays_exact
from engine.quantized.fp8 import Fp8Linear, to_fp8
from engine.quantized.fp8_product import Fp8Product, multiply_in_fp8
from engine.quantized.quantize import quantized
from engine.runner.model_runner import ModelRunner
from tests.engine import quantisers
from tests.engine.conftest import Checkpoints, finish, relative, start
from tests.engine.quantisers import E4M3_MAX
from tests.engine.reference import Job

FP8 = PrecisionOptions(matmul="fp8")
# The result is rounded once; in bfloat16 to 8 bits.
BOUNDS = {torch.float32: 1e-6, torch.bfloat16: 4e-3}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def fp8_layer(inputs: int, outputs: int, bias: bool = False, dtype: torch.dtype = torch.float32) -> Fp8Linear:
    linear = nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)
    linear.weight.copy_(random(outputs, inputs, seed=1) / inputs**0.5)
    if bias:
        linear.bias = nn.Parameter(random(outputs, seed=2).to(dtype), requires_grad=False)
    layer = quantized(linear, "fp8")
    assert isinstance(layer, Fp8Linear)
    return layer


def definition(layer: Fp8Linear | Fp8Product, x: Tensor) -> Tensor:
    """In float32: each token and each row of the weight is e4m3 times a scale."""
    token_scale = x.float().abs().amax(dim=1, keepdim=True) / E4M3_MAX
    token = (x.float() / token_scale).to(torch.float8_e4m3fn).float() * token_scale
    weight = layer.weight.float() * layer.weight_scale.unsqueeze(1)
    y = token @ weight.T
    return y if layer.bias is None else y + layer.bias.float()


def test_rows_are_quantised_as_the_published_weights() -> None:
    weight = random(48, 40)
    stored, _ = quantisers.fp8("weight", weight)
    values, scale = to_fp8(weight)
    assert torch.equal(values.view(torch.uint8), stored["weight"].view(torch.uint8))
    assert torch.equal(scale.squeeze(1), stored["weight_scale"])


def test_extreme_rows_stay_finite() -> None:
    rows = torch.stack((torch.zeros(8), torch.full((8,), 3e38), torch.full((8,), 1e-42), -random(8).abs()))
    values, scale = to_fp8(rows)
    assert (scale > 0).all()
    assert (values.float() * scale).isfinite().all()
    assert (values.float().abs().amax(dim=1) == torch.tensor([0, E4M3_MAX, 0, E4M3_MAX])).all()


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tokens", [1, 7])
def test_a_product(tokens: int, bias: bool, dtype: torch.dtype) -> None:
    layer = fp8_layer(64, 48, bias, dtype)
    x = (random(tokens, 64) * torch.logspace(-3, 3, tokens).unsqueeze(1)).to(dtype)
    y = Fp8Product(layer)(x)
    assert y.dtype == dtype
    for token, expected in zip(y, definition(layer, x), strict=True):
        assert relative(token, expected) < BOUNDS[dtype]


def test_a_token_has_the_same_bits_alone_and_in_a_batch() -> None:
    product, x = Fp8Product(fp8_layer(64, 48)), random(9, 64).bfloat16()
    assert torch.equal(product(x)[3:4], product(x[3:4]))


@pytest.mark.parametrize("dtype", BOUNDS)
def test_every_product_of_a_model(checkpoints: Checkpoints, dtype: torch.dtype) -> None:
    """Both transformers and the text encoder, layer by layer, on the activations of a step."""
    checkpoint = checkpoints("official-fp8")
    pipeline = load_pipeline(PartFolders.of(checkpoint.path), "cpu", dtype, precision=FP8)
    errors: dict[str, float] = {}

    def check(name: str, layer: Fp8Product, inputs: tuple[Tensor], y: Tensor) -> None:
        errors[name] = max(errors.get(name, 0.0), relative(y, definition(layer, inputs[0])))

    for part in ("text_encoder", "conditional", "unconditional"):
        for name, layer in getattr(pipeline, part).named_modules():
            if isinstance(layer, Fp8Product):
                layer.register_forward_hook(
                    lambda layer, inputs, y, name=f"{part}.{name}": check(name, layer, inputs, y)
                )
    runner = ModelRunner(pipeline, "cpu")
    assert runner.precision.matmul == "fp8"
    finish(runner, start(runner, checkpoint, Job("a", 96, 64, (7.0,))))
    of_a_block = ("attention.qkv", "attention.o", "feed_forward.w13", "feed_forward.w2")
    names = {f"{part}.layers.0.{leaf}" for part in ("conditional", "unconditional") for leaf in of_a_block}
    assert names <= errors.keys()
    of_text = {name.partition("layers.")[2] for name in errors if name.startswith("text_encoder")}
    assert {"1.self_attn.o_proj", "35.mlp.up_proj"} <= of_text
    assert not list(filter(stays_exact, errors))
    assert max(errors.values()) < BOUNDS[dtype]


def test_layers_that_the_kernels_cannot_take_stay_exact() -> None:
    part = nn.Sequential(fp8_layer(64, 48), fp8_layer(64, 40), fp8_layer(40, 64))
    multiply_in_fp8(part)
    assert [type(layer) for layer in part] == [Fp8Product, Fp8Linear, Fp8Linear]


class NormedProduct(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.product = RMSNorm(64, 1e-5), Fp8Product(fp8_layer(64, 48))

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        y: Tensor = self.product(self.norm.times(x, scale))
        return y


def test_compiled_the_norm_quantises_what_it_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one kernel, so that its result is written as e4m3 alone; the other kernel scales the product.

    The kernels are generated, but not built, which would take most of the time.
    """
    from torch._inductor.async_compile import AsyncCompile
    from torch._inductor.utils import run_and_get_code

    monkeypatch.setattr(AsyncCompile, "cpp_pybinding", lambda *_: lambda *_: None)
    module, x, scale = NormedProduct(), random(9, 64), random(1, 64)
    with torch.inference_mode():
        _, (code,) = run_and_get_code(torch.compile(module, dynamic=True), x, scale)
    assert code.count("= async_compile.cpp_pybinding(") == 2
    assert re.findall(r"empty_strided_cpu\(\(\w+, 64\), .*torch\.(\w+)\)", code) == ["float8_e4m3fn"]
