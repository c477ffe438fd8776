"""What the machine has: the memory of a device, and a compute dtype. Torch-free."""

import contextlib
import ctypes
from collections.abc import Callable
from pathlib import Path

from engine.config.options import EngineOptions
from engine.config.part_configs import PartConfigs
from engine.environment import host_memory
from engine.memory.bounds import LARGE_BLOCK

# For the context and the code of the libraries, which are not in the plan; about what CUDA takes on an H100.
CUDA_CONTEXT_BYTES = 1 << 30


def uses_cuda(device: str | None) -> bool:
    """Whether the engine runs on a GPU: as asked, or if there is one."""
    return device.startswith("cuda") if device else bool(_cuda_bytes(0))


def device_bytes(device: str | None) -> int | None:
    """Memory of a device; None if it cannot be asked. On a CPU, that of the machine or its cgroup."""
    if not uses_cuda(device):
        return host_memory()
    total = _cuda_bytes(int((device or "").partition(":")[2] or 0))
    return total - CUDA_CONTEXT_BYTES if total else None


def capacity(options: EngineOptions, max_memory_gb: float | None) -> int | None:
    """Bytes for each worker: those of the smallest device, which workers on a CPU share."""
    devices = options.devices or (None,)
    known = [size for device in devices if (size := device_bytes(device)) is not None]
    if known and not uses_cuda(devices[0]):
        known = [min(known) // len(devices)]
    limits = [*known, *([int(max_memory_gb * 1e9)] if max_memory_gb else [])]
    return min(limits, default=None)


def itemsize(options: EngineOptions, configs: PartConfigs, is_cuda: bool) -> int:
    """Of the compute dtype. A small model on a CPU may compute in bfloat16 if that is faster."""
    if options.dtype == "float32":
        return 4
    if is_cuda:
        return 2
    dit = configs.transformer
    block = dit.hidden_size * (4 * dit.hidden_size + 3 * dit.intermediate_size + 4 * dit.adaln_dim)
    is_measured = options.dtype is None and block < LARGE_BLOCK
    return 4 if is_measured or not cpu_has_bfloat16() else 2


def cpu_has_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16, as `engine.kernels.capabilities` asks torch."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().partition("\n\n")[0].split())
    except OSError:  # not Linux
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16"})


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
