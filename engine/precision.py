"""How weights are kept and multiplied: what the options ask for, and what made an image. Torch-free."""

from dataclasses import dataclass
from typing import Literal

Weights = Literal["auto", "stored", "widened"]
Matmul = Literal["exact", "fp8"]
Quantization = Literal["fp8", "nf4"]

# Parts of the names of layers that stay exact, each with the error of the demo model's velocity if these
# layers alone multiply in fp8, and their share of the weights (`python -m benchmarks.precision`). Each matrix
# of the blocks causes 1.4 to 2.6% with 7 to 39% of the weights.
EXACT = (
    "input_proj",  # 2.9%, 0.3%
    "llm_cond_proj",  # 0.2%, 6.0%; once per prompt
    "t_embedding.",  # 0.4%, 1.8%; once per schedule, as the next two
    "adaln_proj",  # 0.8%, 0.2%
    "adaln_modulation",  # 0.8%, 6.5%
    "final_layer.linear",  # 2.5%, 0.3%
    # 0.8% of the features' 1.9% with 2.8% of the weights, and with random weights 6.6 of 10.1%.
    "language_model.layers.0.",
)
# Products in fp8 need both sides of a weight to be multiples of this on CUDA.
_ALIGNMENT = 16
# Rows of nf4 weights consist of blocks of so many.
NF4_BLOCK = 64


@dataclass(frozen=True, slots=True)
class PrecisionOptions:
    """How to keep and multiply the weights of the text encoder and the transformers.

    `weights`: keep quantised weights as stored, or widen them to the compute dtype when the model is loaded.
    "auto": widen them if they fit in memory and are measured to be faster so.
    `matmul`: "fp8": quantise the activations of products with fp8 weights, and multiply in fp8.
    `quantize`: quantise weights that are not quantised when the model is loaded.
    """

    weights: Weights = "auto"
    matmul: Matmul = "exact"
    quantize: Quantization | None = None


@dataclass(frozen=True, slots=True)
class Precision:
    """What an image was made with, in the blocks of the conditional transformer.

    `weights`: their quantisation (of most, if it differs), or else their dtype. `widened`: quantised weights
    are kept in the compute dtype. `dtype`: the compute dtype.
    """

    weights: str
    widened: bool
    matmul: Matmul
    dtype: str


def stays_exact(name: str) -> bool:
    """Whether the layer `name` of a transformer or text encoder is too sensitive for products in fp8."""
    return any(part in name for part in EXACT)


def has_fp8_kernel(rows: int, columns: int) -> bool:
    """Whether the kernels can take a weight of this shape."""
    return rows % _ALIGNMENT == 0 and columns % _ALIGNMENT == 0


def is_quantizable(columns: int, kind: Quantization) -> bool:
    """Whether the rows of a weight consist of whole blocks."""
    return kind == "fp8" or columns % NF4_BLOCK == 0
