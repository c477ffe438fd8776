"""GPUs by their data sheets, and the share of their rates that was measured. Torch-free."""

from dataclasses import dataclass

# Of the bound of a step in bfloat16: 284 ms at 1024 px on one H100 reach it, with prompts of 100 tokens.
SHARE = 0.6
VAE_SHARE = 0.20  # of the same for the decoder; assumed
BYTES_PER_WEIGHT = {"bf16": 2.0, "fp8": 1.0, "nf4": 0.5 + 4 / 64}  # nf4 has a 4-byte scale for every 64


@dataclass(frozen=True, slots=True)
class Gpu:
    """Values without sparsity: FLOP/s in bfloat16 and in fp8, with float32 sums; bytes/s; bytes."""

    name: str
    bf16: float
    fp8: float
    bandwidth: float
    memory: float


H100 = Gpu("H100 SXM", 989e12, 1979e12, 3.35e12, 80e9)
GPUS = (
    H100,
    Gpu("H200", 989e12, 1979e12, 4.8e12, 141e9),
    Gpu("B200", 2250e12, 4500e12, 8.0e12, 180e9),
    Gpu("L40S", 362e12, 733e12, 0.864e12, 48e9),
    Gpu("RTX 4090", 165.2e12, 330.3e12, 1.008e12, 24e9),
    Gpu("RTX 5090", 209.5e12, 419e12, 1.792e12, 32e9),
)
