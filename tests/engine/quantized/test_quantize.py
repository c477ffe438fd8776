"""Weights that are quantised when they are loaded are those of the published files, bit for bit."""

import pytest
import torch

from engine.checkpoint.loader import load_pipeline
from engine.config.part_folders import PartFolders
from engine.errors import OptionError
from engine.precision import Precision, PrecisionOptions, Quantization
from engine.quantized.kept import precision_of
from engine.quantized.nf4 import quantize_nf4
from tests.engine.conftest import Checkpoints


@pytest.mark.parametrize("kind", ["fp8", "nf4"])
def test_a_quantised_model_is_the_published_one(checkpoints: Checkpoints, kind: Quantization) -> None:
    folders = [PartFolders.of(checkpoints(layout).path) for layout in ("official", f"official-{kind}")]
    options = PrecisionOptions(quantize=kind)
    quantised = load_pipeline(folders[0], "cpu", torch.bfloat16, precision=options)
    published = load_pipeline(folders[1], "cpu", torch.bfloat16)
    for pipeline in (quantised, published):
        blocks = pipeline.conditional.layers
        assert precision_of(blocks, torch.bfloat16) == Precision(kind, False, "exact", "bfloat16")
    for part in ("text_encoder", "conditional", "unconditional"):
        wanted = dict(getattr(published, part).named_parameters())
        found = dict(getattr(quantised, part).named_parameters())
        assert found.keys() == wanted.keys()
        for name, parameter in found.items():
            assert parameter.dtype == wanted[name].dtype, name
            assert torch.equal(parameter.view(torch.uint8), wanted[name].view(torch.uint8)), name


def test_blocks_of_zeros_stay_zero() -> None:
    weight = torch.zeros(2, 64)
    weight[1] = 1e-42
    packed, absmax = quantize_nf4(weight)
    assert torch.equal(packed[:32], torch.full((32,), 0x77, dtype=torch.uint8))
    assert absmax[0] == 0


@pytest.mark.parametrize(
    ("layout", "options", "said"),
    [
        (
            "official-fp8",
            PrecisionOptions(quantize="fp8"),
            "quantize: fp8 is for weights that are not quantised",
        ),
        (
            "official-nf4",
            PrecisionOptions(quantize="fp8"),
            "quantize: fp8 is for weights that are not quantised",
        ),
        ("official", PrecisionOptions(matmul="fp8"), "matmul: fp8 needs fp8 weights, and those of "),
        ("official-nf4", PrecisionOptions(matmul="fp8"), "matmul: fp8 needs fp8 weights, and those of "),
    ],
)
def test_weights_of_another_kind_are_refused(
    checkpoints: Checkpoints, layout: str, options: PrecisionOptions, said: str
) -> None:
    with pytest.raises(OptionError) as error:
        load_pipeline(PartFolders.of(checkpoints(layout).path), "cpu", torch.bfloat16, precision=options)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)
