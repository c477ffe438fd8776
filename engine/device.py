"""A device: what it computes in, how it is kept busy, what it says of its memory and failures."""

import ctypes
import os
import sys

import torch
from torch import Tensor

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
    native = device.type != "cpu" or _cpu_has("avx512_bf16", "amx_bf16")
    return torch.bfloat16 if native and asked != "float32" else torch.float32


def wants_prepacked_weights(device: torch.device) -> bool:
    """Whether oneDNN's blocked weight format is faster there."""
    return device.type == "cpu" and torch.backends.mkldnn.is_available() and _cpu_has("avx512_f")


def _cpu_has(*instructions: str) -> bool:
    """Any of them."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in instructions)


class Device:
    """Where the model runs. On a CPU there is nothing to wait for."""

    def __init__(self, name: torch.device | str) -> None:
        self.torch = torch.device(name)
        self._is_cuda = self.torch.type == "cuda"
        if self._is_cuda:
            torch.backends.cudnn.allow_tf32 = False  # convolutions in float32 are what was asked for
            torch.backends.cuda.enable_cudnn_sdp(False)  # but where `attention` asks for it
        self._step_done: torch.cuda.Event | None = None

    def send(self, values: Tensor) -> Tensor:
        """The values on the device; nobody waits for the copy."""
        pinned = values.pin_memory() if self._is_cuda else values
        return pinned.to(self.torch, non_blocking=True)

    def end_step(self) -> None:
        """Return when the step before this one is done: the device never waits for the host."""
        if self._is_cuda:
            before, self._step_done = self._step_done, torch.cuda.Event()
            self._step_done.record(torch.cuda.current_stream(self.torch))
            if before:
                before.synchronize()

    def synchronize(self) -> None:
        """Wait until the device is done."""
        if self._is_cuda:
            torch.cuda.synchronize(self.torch)

    def peak_memory_bytes(self) -> int:
        """The most device memory that was in use since the last call; 0 on a CPU."""
        if not self._is_cuda:
            return 0
        peak = torch.cuda.max_memory_allocated(self.torch)
        torch.cuda.reset_peak_memory_stats(self.torch)
        return peak

    def release_memory(self) -> None:
        """Give freed memory back: to the device, and what a CPU's kept to the system."""
        if self._is_cuda:
            torch.cuda.empty_cache()
        elif libc := _glibc():
            libc.malloc_trim(0)

    def is_out_of_memory(self, error: Exception) -> bool:
        # The CPU allocator raises a plain RuntimeError.
        kinds = torch.OutOfMemoryError | MemoryError
        return isinstance(error, kinds) or "can't allocate memory" in str(error)

    def is_fatal(self, error: Exception) -> bool:
        """After a device error (not out of memory) the process is of no more use."""
        return isinstance(error, torch.AcceleratorError) and not self.is_out_of_memory(error)


def set_up_cpu(workers: int) -> None:
    """Share the cores among `workers` processes, and keep freed memory for the next step.

    Without the latter the large activations of the VAE are mapped and cleared anew in every layer.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // workers))
    if libc := _glibc():
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)


def _glibc() -> ctypes.CDLL | None:
    """None on another system, and where musl is its library."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "mallopt") else None
