"""How weights are kept and multiplied: what the options ask for, and what made an image. Torch-free."""

from dataclasses import dataclass
from typing import Literal

Weights = Literal["auto", "stored", "widened"]
Matmul = Literal["exact", "fp8"]
Quantization = Literal["fp8", "nf4"]


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
