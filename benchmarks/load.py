"""Measure memory while loading a checkpoint: `python -m benchmarks.load [--dir DIR] [--full-size]`.

For each layout, writes a random checkpoint of about 4 GB (bfloat16; less in fp8 and nf4), loads it in a new
process and prints the size of the loaded weights and the peak of resident memory above the value before
loading. --full-size uses one nf4 checkpoint of the published sizes instead (16 GB) and also makes a 256x256
image in 2 steps on the CPU. The checkpoints are deleted at the end.
"""

import argparse
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import get_args

import torch

from benchmarks.random_checkpoint import Layout, write_checkpoint
from engine.checkpoint.loader import Pipeline, load_pipeline
from engine.config.part_configs import DiTConfig, VAEConfig
from engine.config.part_folders import PartFolders
from engine.models.resumable import drain
from engine.request import EngineRequest, SamplingParams
from engine.runner.model_runner import ModelRunner
from engine.runner.request_state import RequestState

# The text model of Qwen3-VL 8B, and a smaller one that is used with two-layer transformers.
TEXT = {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 5_000_000,
        "mrope_section": [24, 20, 20],
        "mrope_interleaved": True,
    },
}
SMALL_TEXT = TEXT | {"hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 8}
SMALL_DIT = DiTConfig(num_layers=2, llm_features_dim=13 * 1024)
PROMPT_TOKENS = 100
GB = 1e9


@dataclass(frozen=True)
class Loaded:
    """Bytes and seconds of one load. `image_seconds`: encoding, steps, decoding, processor time of all."""

    kept: int
    peak: int
    seconds: float
    total_peak: int
    image_seconds: tuple[float, ...] = ()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dir", type=Path, help="folder for the checkpoints (default: a temporary folder)")
    parser.add_argument("--full-size", action="store_true", help="one nf4 checkpoint of the published sizes")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=options.dir))
    try:
        full_size(folder) if options.full_size else every_layout(folder)
    finally:
        shutil.rmtree(folder)


def every_layout(folder: Path) -> None:
    print("| weights | kept, GB | peak while loading, GB | ratio | seconds |")
    print("|---|---|---|---|---|")
    for layout in get_args(Layout):
        write_checkpoint(folder / layout, layout, SMALL_DIT, SMALL_TEXT, VAEConfig())
        loaded = _in_new_process(folder / layout, with_image=False)
        shutil.rmtree(folder / layout)
        print(f"| {layout} | {_row(loaded)} |", flush=True)


def full_size(folder: Path) -> None:
    started = time.perf_counter()
    write_checkpoint(folder / "nf4", "nf4", DiTConfig(), TEXT, VAEConfig())
    size = sum(file.stat().st_size for file in folder.glob("**/*.safetensors"))
    print(f"wrote {size / GB:.1f} GB in {time.perf_counter() - started:.0f} s", flush=True)
    loaded = _in_new_process(folder / "nf4", with_image=True)
    encode, steps, decode, processors = loaded.image_seconds
    print("| weights | kept, GB | peak while loading, GB | ratio | seconds |\n|---|---|---|---|---|")
    print(f"| nf4 | {_row(loaded)} |")
    print(
        f"256x256, 2 steps: encoding {encode:.0f} s, steps {steps:.0f} s, decoding {decode:.1f} s;", end=" "
    )
    print(f"{processors:.0f} s of processor time")
    print(f"peak of the whole process: {loaded.total_peak / GB:.1f} GB")


def _row(loaded: Loaded) -> str:
    kept, peak = loaded.kept / GB, loaded.peak / GB
    return f"{kept:.2f} | {peak:.2f} | {peak / kept:.3f} | {loaded.seconds:.1f}"


def _in_new_process(path: Path, with_image: bool) -> Loaded:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, path, with_image).result()


def measure(path: Path, with_image: bool) -> Loaded:
    """Load `path` in this process, whose libraries are already imported."""
    reset_peak()
    before, started = resident("VmRSS"), time.perf_counter()
    pipeline = load_pipeline(PartFolders.of(path), "cpu", torch.bfloat16)
    seconds = time.perf_counter() - started
    peak = resident("VmHWM") - before
    image = make_image(pipeline) if with_image else ()
    return Loaded(_kept_bytes(pipeline), peak, seconds, resident("VmHWM"), image)


def make_image(pipeline: Pipeline) -> tuple[float, float, float, float]:
    """Make an image in two steps: seconds of encoding, steps and decoding, and their processor seconds."""
    runner = ModelRunner(pipeline, "cpu")
    sampling = SamplingParams(guidance_schedule=(7.0, 3.0), mu=0.0, std=1.75)
    state = RequestState(EngineRequest("image", tuple(range(PROMPT_TOKENS)), 256, 256, (1,), sampling))
    times, processors = [time.perf_counter()], time.process_time()
    (state.conditioning,) = drain(runner.encode([state.request]))
    sample = runner.new_sample(state, 0)
    times.append(time.perf_counter())
    while not sample.is_finished:
        runner.denoise_step([sample])
    times.append(time.perf_counter())
    (rgb,) = drain(runner.decode([sample]))
    assert isinstance(rgb, bytes)
    times.append(time.perf_counter())
    assert len(rgb) == 256 * 256 * 3
    encode, steps, decode = (end - start for start, end in pairwise(times))
    return encode, steps, decode, time.process_time() - processors


def _kept_bytes(pipeline: Pipeline) -> int:
    parts = (pipeline.text_encoder, pipeline.conditional, pipeline.unconditional, pipeline.vae)
    return sum(parameter.nbytes for part in parts for parameter in part.parameters())


def resident(field: str) -> int:
    """VmRSS (current) or VmHWM (peak since the last reset) in bytes."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text("ascii").splitlines())
    return int(lines[field].split()[0]) * 1024


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", "ascii")


if __name__ == "__main__":
    main()
