"""What the machine has: the memory of a device, and instructions for bfloat16. Torch-free."""

import contextlib
import ctypes
import os
from collections.abc import Callable
from pathlib import Path

from engine.environment import memory_limits

# For the context and the code of the libraries, which are not in the plan; about what CUDA takes on an H100.
CUDA_CONTEXT_BYTES = 1 << 30


def uses_cuda(device: str | None) -> bool:
    """Whether the engine runs on a GPU: as asked, or if there is one."""
    return device.startswith("cuda") if device else bool(_cuda_bytes(0))


def device_bytes(device: str | None) -> int | None:
    """Memory of a device; None if it cannot be asked. On a CPU, that of the machine or its cgroup."""
    if not uses_cuda(device):
        return min([_host_bytes(), *memory_limits()])
    total = _cuda_bytes(int((device or "").partition(":")[2] or 0))
    return total - CUDA_CONTEXT_BYTES if total else None


def cpu_has_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16, as `engine.kernels.capabilities` asks torch."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().partition("\n\n")[0].split())
    except OSError:  # not Linux
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16"})


def _host_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cuda_bytes(index: int) -> int:
    """Memory of a GPU by the driver, which heeds CUDA_VISIBLE_DEVICES; 0 without one. Creates no context."""
    device, total = ctypes.c_int(), ctypes.c_size_t()
    with contextlib.suppress(OSError, AttributeError):
        driver = ctypes.CDLL("libcuda.so.1")
        calls: tuple[Callable[[], int], ...] = (
            lambda: driver.cuInit(0),
            lambda: driver.cuDeviceGet(ctypes.byref(device), index),
            lambda: driver.cuDeviceTotalMem_v2(ctypes.byref(total), device),
        )
        if not any(call() for call in calls):  # each returns 0 if it succeeds
            return total.value
    return 0
