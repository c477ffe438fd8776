"""Predict memory and latency of the real model: `python -m benchmarks.sizing`.

Operations and bytes are counted from the published model sizes. The time of a pass is its operations divided
by a share of the GPU's peak (EFFICIENCY), plus one read of the weights. EFFICIENCY is calibrated on a step
measured by `python -m benchmarks.published`: 284 ms at 1024x1024 on one H100, with bfloat16 weights and a
prompt of 100 tokens. The share for the VAE and for other GPUs is assumed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from engine.config.model_config import PUBLISHED_PRESETS
from engine.config.options import EngineOptions
from engine.cost import CostModel, LinearCost

EFFICIENCY = 0.61  # of the dense bfloat16 peak; measured on one H100
VAE_EFFICIENCY = 0.20  # assumed
PIXELS_PER_TOKEN = 16
PROMPT_TOKENS = 300  # a structured caption

WIDTH, LAYERS, FFN, ADALN, FEATURES = 4608, 34, 12288, 512, 53248
TEXT_WIDTH, TEXT_LAYERS, TEXT_FFN, TEXT_KV, VOCABULARY = 4096, 36, 12288, 1024, 151_936
VAE_CHANNELS = (512, 512, 256, 128)  # of the decoder, from the latent resolution to the image resolution

DIT_BLOCK = 4 * WIDTH**2 + 3 * WIDTH * FFN
DIT_PARAMETERS = LAYERS * (DIT_BLOCK + 4 * WIDTH * ADALN) + FEATURES * WIDTH
TEXT_BLOCK = 2 * TEXT_WIDTH**2 + 2 * TEXT_WIDTH * TEXT_KV + 3 * TEXT_WIDTH * TEXT_FFN
TEXT_PARAMETERS = TEXT_LAYERS * TEXT_BLOCK + VOCABULARY * TEXT_WIDTH
# nf4 stores a 4-byte scale for every 64 weights.
BYTES_PER_PARAMETER = {"bf16": 2.0, "fp8": 1.0, "nf4": 0.5 + 4 / 64}


@dataclass(frozen=True, slots=True)
class Gpu:
    """Data sheet values: dense bfloat16 FLOP/s, memory bandwidth in bytes/s, memory in bytes."""

    name: str
    flops: float
    bandwidth: float
    memory: float


H100 = Gpu("H100 SXM", 989e12, 3.35e12, 80e9)
GPUS = (H100, Gpu("H200", 989e12, 4.8e12, 141e9), Gpu("A100 80 GB", 312e12, 2.04e12, 80e9))


def weight_bytes(layout: str) -> float:
    """Bytes of both transformers and the text encoder. The VAE (under 0.2 GB) is not counted."""
    return (2 * DIT_PARAMETERS + TEXT_PARAMETERS) * BYTES_PER_PARAMETER[layout]


def activation_bytes(tokens: int) -> float:
    """Peak bfloat16 activations of one transformer block: x, its norm, q, k, v, and both FFN halves."""
    return tokens * 2 * (5 * WIDTH + 2 * FFN)


def decode_flops(pixels: int) -> float:
    """Operations of the 3x3 convolutions: three residual blocks per level, one after each upsampling."""
    flops, channels_in = 0.0, VAE_CHANNELS[0]
    for level, channels in enumerate(VAE_CHANNELS):
        area = pixels / 4 ** (len(VAE_CHANNELS) - 1 - level)
        flops += 2 * 9 * area * (channels_in * channels + 5 * channels**2)
        if level + 1 < len(VAE_CHANNELS):
            flops += 2 * 9 * 4 * area * channels**2
        channels_in = channels
    return flops


def predicted_cost(gpu: Gpu, layout: str = "bf16") -> CostModel:
    """Predict the cost model that the engine's warm-up would measure on this GPU."""
    reading = BYTES_PER_PARAMETER[layout] / gpu.bandwidth
    rate = gpu.flops * EFFICIENCY
    image_flops = decode_flops(PIXELS_PER_TOKEN**2)
    return CostModel(
        pass_=LinearCost(DIT_PARAMETERS * reading, 2 * LAYERS * DIT_BLOCK / rate, 4 * LAYERS * WIDTH / rate),
        encode=LinearCost(
            TEXT_PARAMETERS * reading,
            (2 * TEXT_LAYERS * TEXT_BLOCK + 2 * FEATURES * WIDTH) / rate,
            4 * TEXT_LAYERS * TEXT_WIDTH / rate,
        ),
        decode=LinearCost(0.0, image_flops / (gpu.flops * VAE_EFFICIENCY)),
        pixels_per_token=PIXELS_PER_TOKEN,
        max_batch_size=EngineOptions().max_batch_size,
        max_batch_tokens=EngineOptions().max_batch_tokens,
    )


def image_seconds(cost: CostModel, preset: str, width: int, height: int) -> float:
    """Seconds of one image without other work on the device."""
    tokens = cost.image_tokens(width, height)
    steps = PUBLISHED_PRESETS[preset].num_inference_steps
    return (
        cost.encode.seconds([PROMPT_TOKENS])
        + steps * cost.step_seconds(tokens, [PROMPT_TOKENS], 1)
        + cost.decode.seconds([tokens])
    )


def memory_table() -> Iterator[str]:
    yield "| predicted | weights | activations per block, 1024x1024 | 2048x2048 |"
    yield "|---|---|---|---|"
    activations = " | ".join(f"{activation_bytes((side // 16) ** 2) / 1e9:.1f} GB" for side in (1024, 2048))
    for layout in BYTES_PER_PARAMETER:
        yield f"| {layout} | {weight_bytes(layout) / 1e9:.1f} GB | {activations} |"


def seconds_table() -> Iterator[str]:
    yield "| predicted, bf16 weights | size | step | TURBO_12 | DEFAULT_20 | QUALITY_48 |"
    yield "|---|---|---|---|---|---|"
    for gpu in GPUS:
        cost = predicted_cost(gpu)
        for side in (512, 1024, 2048):
            step = cost.step_seconds(cost.image_tokens(side, side), [PROMPT_TOKENS], 1)
            images = " | ".join(f"{image_seconds(cost, name, side, side):.1f} s" for name in _presets())
            yield f"| {gpu.name} | {side}x{side} | {step * 1e3:.0f} ms | {images} |"


def _presets() -> list[str]:
    return sorted(PUBLISHED_PRESETS, key=lambda name: PUBLISHED_PRESETS[name].num_inference_steps)


if __name__ == "__main__":
    print(*memory_table(), "", *seconds_table(), sep="\n")
