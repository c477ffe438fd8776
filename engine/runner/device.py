"""Synchronisation, memory and errors of a device, and the set-up of a CPU."""

import ctypes
import os
import sys

import torch
from torch import Tensor

from engine.environment import available_cpus

# glibc's mallopt: never trim the heap, never map large blocks separately.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_KEEP_BYTES = (1 << 31) - 1


def choose_device(asked: str | None) -> torch.device:
    """The requested device; by default cuda if available, else cpu."""
    return torch.device(asked or ("cuda" if torch.cuda.is_available() else "cpu"))


class Device:
    """Where the model runs. Work on a CPU is synchronous."""

    def __init__(self, name: torch.device | str) -> None:
        self.torch = torch.device(name)
        self._is_cuda = self.torch.type == "cuda"
        if self._is_cuda:
            torch.backends.cudnn.allow_tf32 = False  # compute float32 in full precision
            torch.backends.cuda.enable_cudnn_sdp(False)  # `kernels.attention` enables it per call
        self._step_done: torch.cuda.Event | None = None

    def send(self, values: Tensor) -> Tensor:
        """Copy the values to the device asynchronously."""
        pinned = values.pin_memory() if self._is_cuda else values
        return pinned.to(self.torch, non_blocking=True)

    def end_step(self) -> None:
        """Wait for the previous step, not this one, so that the device always has work queued."""
        if self._is_cuda:
            before, self._step_done = self._step_done, torch.cuda.Event()
            self._step_done.record(torch.cuda.current_stream(self.torch))
            if before:
                before.synchronize()

    def synchronize(self) -> None:
        """Wait until the device has finished all queued work. Copies of offloaded weights go on."""
        if self._is_cuda:
            torch.cuda.current_stream(self.torch).synchronize()

    def peak_memory_bytes(self) -> int:
        """Peak device memory since the last call, in bytes; 0 on a CPU."""
        if not self._is_cuda:
            return 0
        peak = torch.cuda.max_memory_allocated(self.torch)
        torch.cuda.reset_peak_memory_stats(self.torch)
        return peak

    def release_memory(self) -> None:
        """Return cached memory to the device, or on a CPU to the operating system."""
        if self._is_cuda:
            torch.cuda.empty_cache()
        elif libc := _glibc():
            libc.malloc_trim(0)

    def is_out_of_memory(self, error: Exception) -> bool:
        # The CPU allocator raises a plain RuntimeError.
        kinds = torch.OutOfMemoryError | MemoryError
        return isinstance(error, kinds) or "can't allocate memory" in str(error)

    def is_fatal(self, error: Exception) -> bool:
        """Whether the process must end: a device error other than out of memory."""
        return isinstance(error, torch.AcceleratorError) and not self.is_out_of_memory(error)


def set_up_cpu(workers: int) -> None:
    """Divide the available CPUs among `workers` processes, and make malloc keep freed memory.

    Otherwise every layer of the VAE maps and clears its large activations again.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, available_cpus() // workers))
    if libc := _glibc():
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)


def _glibc() -> ctypes.CDLL | None:
    """The C library if it is glibc, else None."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "mallopt") else None
