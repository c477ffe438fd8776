"""Measure how fast weights are loaded: `python -m benchmarks.load_rate [--dir DIR] [--parts PARTS]`.

Writes the parts of a random checkpoint of the published sizes (27 GB in fp8), one after the other, and loads
each onto the device: `cold` after its files were dropped from the page cache, `warm` with them in it. Beside
it, the rate at which one thread reads the same file. Each part is deleted before the next is written, so the
disk needs 10 GB for fp8.
"""

import argparse
import gc
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from benchmarks.load import GB, TEXT, reset_peak, resident
from benchmarks.random_checkpoint import PARTS, Layout, write_checkpoint
from benchmarks.report import Report, add_arguments, progress, several
from engine.checkpoint.loader import load_dit, load_text_encoder, load_vae, load_vae_encoder
from engine.config.part_configs import DiTConfig, VAEConfig
from engine.runner.device import Device, choose_device

LOADS = {"part": "<26", "cache": "<5", "GB": "6.2f", "read, GB/s": "8.2f", "seconds": "8.2f", "GB/s": "6.2f"}
LOADS |= {"kept, GB": "8.2f", "peak / kept": "6.3f"}
BUFFER = 16 << 20
SMALL_DIT = DiTConfig(num_layers=1, num_attention_heads=2, intermediate_size=512, llm_features_dim=13 * 256)
SMALL_TEXT = TEXT | {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def load(folder: Path, part: str, device: torch.device) -> nn.Module:
    """Load a part as a worker does."""
    dtype = torch.bfloat16
    if part == "text_encoder":
        return load_text_encoder(folder / part, device, dtype)
    if part == "vae":
        encoder = load_vae_encoder(folder / part, device, dtype)
        return nn.ModuleList([load_vae(folder / part, device, dtype), *([encoder] if encoder else [])])
    return load_dit(folder / part, device, dtype)[0]


def drop_from_cache(file: Path) -> None:
    """Drop the file from the page cache, after its pages are on the disk."""
    with FileIO(file) as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_all(file: Path) -> None:
    """Read the file in one thread."""
    buffer = memoryview(bytearray(BUFFER))
    with FileIO(file) as stream:
        while stream.readinto(buffer):
            pass


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = run()
    return time.perf_counter() - started, result


def measure(folder: Path, part: str, cache: str, device: torch.device) -> dict[str, float]:
    """Cells of one load."""
    (file,) = (folder / part).glob("*.safetensors")
    prepare = partial(drop_from_cache if cache == "cold" else read_all, file)
    prepare()
    reading, _ = seconds(lambda: read_all(file))
    prepare()
    gc.collect()
    reset_peak()
    before, size = resident("VmRSS"), file.stat().st_size
    loading, module = seconds(lambda: _synchronized(partial(load, folder, part, device), device))
    kept = sum(weight.nbytes for weight in module.parameters())
    cells = {
        "GB": size / GB,
        "read, GB/s": size / GB / reading,
        "seconds": loading,
        "GB/s": size / GB / loading,
    }
    on_host = device.type == "cpu"
    return cells | {
        "kept, GB": kept / GB,
        "peak / kept": (resident("VmHWM") - before) / kept if on_host else None,
    }


def _synchronized(run: Callable[[], nn.Module], device: torch.device) -> nn.Module:
    module = run()
    Device(device).synchronize()
    return module


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load_rate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--dir", type=Path, help="folder for the checkpoint (default: that of temporary files)"
    )
    parser.add_argument("--layout", choices=get_args(Layout), default="fp8")
    parser.add_argument("--parts", type=several(str), default=PARTS, help=f"of {','.join(PARTS)}")
    parser.add_argument("--small", action="store_true", help="a tiny checkpoint")
    add_arguments(parser)
    options = parser.parse_args()
    report, device = Report("load_rate", options, loads=LOADS), choose_device(None)
    sizes = (SMALL_DIT, SMALL_TEXT) if options.small else (DiTConfig(), TEXT)
    for part in progress(options.parts, "loading"):
        with tempfile.TemporaryDirectory(dir=options.dir) as folder:
            write_checkpoint(Path(folder), options.layout, *sizes, VAEConfig(), [part])
            for cache in ("cold", "warm"):
                report.add("loads", part=part, cache=cache, **measure(Path(folder), part, cache, device))


if __name__ == "__main__":
    main()
