"""Choices by the instruction sets of the device."""

import pytest
import torch

from engine.kernels.capabilities import choose_dtype

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("device", "instructions", "asked", "expected"),
    [
        (CPU, {"avx2": True, "avx512_bf16": False}, None, torch.float32),
        (CPU, {"avx2": True, "avx512_bf16": False}, "bfloat16", torch.float32),
        (CPU, {"avx512_bf16": True}, None, torch.bfloat16),
        (CPU, {"amx_bf16": True}, None, torch.bfloat16),
        (CPU, {"avx512_bf16": True}, "float32", torch.float32),
        (CUDA, {}, None, torch.bfloat16),
        (CUDA, {}, "float32", torch.float32),
    ],
)
def test_bfloat16_needs_instructions_of_the_device(
    monkeypatch: pytest.MonkeyPatch,
    device: torch.device,
    instructions: dict[str, bool],
    asked: str | None,
    expected: torch.dtype,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    assert choose_dtype(device, asked) == expected
