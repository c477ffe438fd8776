"""What a device computes in, and how a process that runs the model on it is set up."""

import ctypes
import os
import sys

import torch

# glibc's mallopt: give nothing back at the top of the heap, never map a block of its own.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_KEEP_BYTES = (1 << 31) - 1


def choose_device(asked: str | None) -> torch.device:
    """The device asked for; unasked cuda where there is one, else cpu."""
    return torch.device(asked or ("cuda" if torch.cuda.is_available() else "cpu"))


def choose_dtype(device: torch.device, asked: str | None) -> torch.dtype:
    """bfloat16 where the device has instructions for it, float32 where asked for or where it has not.

    A CPU without them would imitate bfloat16 many times slower and no more exactly than float32 is.
    """
    native = device.type != "cpu" or _cpu_has_bfloat16()
    return torch.bfloat16 if native and asked != "float32" else torch.float32


def _cpu_has_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


def set_up_cpu(workers: int) -> None:
    """Share the cores among `workers` processes, and keep freed memory for the next step.

    Without the latter the large activations of the VAE are mapped and cleared anew in every layer.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // workers))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # not so in musl
            libc.mallopt(_M_MMAP_MAX, 0)
            libc.mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)
