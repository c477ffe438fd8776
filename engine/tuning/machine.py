"""What decides which kernel is the fastest, besides the model: part of the key of kept choices."""

import os
import platform
from pathlib import Path

import torch

_CPU_INFO = Path("/proc/cpuinfo")


def describe(device: torch.device) -> dict[str, object]:
    """Processor or GPU, its instruction sets, torch, and the number of threads."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "instructions": sorted(name for name, has in torch.cpu.get_capabilities().items() if has is True),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def processor() -> str:
    """The processor's name."""
    if _CPU_INFO.exists():
        for line in _CPU_INFO.read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cache_folder() -> Path | None:
    """`ideoserve` in TORCHINDUCTOR_CACHE_DIR if it is set, else in XDG_CACHE_HOME or ~/.cache.

    None if the user has no home.
    """
    try:
        cache = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME")
        return (Path(cache) if cache else Path.home() / ".cache") / "ideoserve"
    except RuntimeError:
        return None
