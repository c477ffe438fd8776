"""Choices by the instruction sets of the device."""

import torch


def choose_dtype(device: torch.device, asked: str | None) -> torch.dtype:
    """bfloat16 if the device has instructions for it and float32 was not requested, else float32.

    A CPU without them emulates bfloat16, many times slower than float32 and less precise.
    """
    native = device.type != "cpu" or _cpu_has("avx512_bf16", "amx_bf16")
    return torch.bfloat16 if native and asked != "float32" else torch.float32


def _cpu_has(*instructions: str) -> bool:
    """Whether the CPU has any of these instruction sets."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in instructions)
