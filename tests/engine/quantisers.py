"""The two published weight quantisations, written plainly: tensors of the file, the value they stand for."""

import json

import torch
from torch import Tensor

# bitsandbytes' NormalFloat4 code.
NF4_CODE = torch.tensor(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ]
)
BLOCK = 64
E4M3_MAX = 448.0


def fp8(key: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """e4m3 with one float32 scale to an output row."""
    scale = weight.abs().amax(dim=1) / E4M3_MAX
    stored = (weight / scale[:, None]).to(torch.float8_e4m3fn)
    return {key: stored, f"{key}_scale": scale}, stored.float() * scale[:, None]


def nf4(key: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The nearest of 16 values of each block of 64, two to a byte, first in the high half."""
    blocks = weight.reshape(-1, BLOCK)
    absmax = blocks.abs().amax(dim=1)
    codes = (blocks / absmax[:, None]).unsqueeze(-1).sub(NF4_CODE).abs().argmin(dim=-1)
    pairs = codes.view(-1, 2)
    declared = {"quant_type": "nf4", "blocksize": BLOCK, "dtype": "float32", "shape": list(weight.shape)}
    tensors = {
        key: (pairs[:, 0] * 16 + pairs[:, 1]).to(torch.uint8).unsqueeze(1),
        f"{key}.absmax": absmax,
        f"{key}.quant_map": NF4_CODE.clone(),
        f"{key}.quant_state.bitsandbytes__nf4": torch.tensor(
            list(json.dumps(declared).encode()), dtype=torch.uint8
        ),
    }
    return tensors, (NF4_CODE[codes] * absmax[:, None]).view(weight.shape)
