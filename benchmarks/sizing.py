"""Memory and seconds of the real model, predicted: `python -m benchmarks.sizing`.

Nothing here was measured. Operations and bytes are counted from the published sizes; seconds are operations
over the data sheet's dense bfloat16 peak times EFFICIENCY, which is what the published 435 ms a step at
1024x1024 on an H100 come to, plus one reading of the weights a pass. The VAE's efficiency is assumed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from engine.config.model_config import PUBLISHED_PRESETS
from engine.cost import CostModel, LinearCost

EFFICIENCY = 0.42
VAE_EFFICIENCY = 0.20
PIXELS_PER_TOKEN = 16
PROMPT_TOKENS = 300

WIDTH, LAYERS, FFN, ADALN, FEATURES = 4608, 34, 12288, 512, 53248
TEXT_WIDTH, TEXT_LAYERS, TEXT_FFN, TEXT_KV, VOCABULARY = 4096, 36, 12288, 1024, 151_936
VAE_CHANNELS = (512, 512, 256, 128)  # of the decoder, from the latents' resolution to the image's

DIT_BLOCK = 4 * WIDTH**2 + 3 * WIDTH * FFN
DIT_PARAMETERS = LAYERS * (DIT_BLOCK + 4 * WIDTH * ADALN) + FEATURES * WIDTH
TEXT_BLOCK = 2 * TEXT_WIDTH**2 + 2 * TEXT_WIDTH * TEXT_KV + 3 * TEXT_WIDTH * TEXT_FFN
TEXT_PARAMETERS = TEXT_LAYERS * TEXT_BLOCK + VOCABULARY * TEXT_WIDTH
# A scale per 64 weights of nf4 is 4 bytes.
BYTES_PER_PARAMETER = {"bf16": 2.0, "fp8": 1.0, "nf4": 0.5 + 4 / 64}


@dataclass(frozen=True, slots=True)
class Gpu:
    """Of the data sheet: dense bfloat16 operations a second, bytes a second, bytes."""

    name: str
    flops: float
    bandwidth: float
    memory: float


H100 = Gpu("H100 SXM", 989e12, 3.35e12, 80e9)
GPUS = (H100, Gpu("H200", 989e12, 4.8e12, 141e9), Gpu("A100 80 GB", 312e12, 2.04e12, 80e9))


def weight_bytes(layout: str) -> float:
    """Both transformers and the text encoder; the VAE is under 0.2 GB."""
    return (2 * DIT_PARAMETERS + TEXT_PARAMETERS) * BYTES_PER_PARAMETER[layout]


def activation_bytes(tokens: int) -> float:
    """Live at once in a transformer block, bfloat16: x, its norm, q, k, v, and two halves of the FFN."""
    return tokens * 2 * (5 * WIDTH + 2 * FFN)


def decode_flops(pixels: int) -> float:
    """3x3 convolutions of three residual blocks a level, and one after each upsampling."""
    flops, channels_in = 0.0, VAE_CHANNELS[0]
    for level, channels in enumerate(VAE_CHANNELS):
        area = pixels / 4 ** (len(VAE_CHANNELS) - 1 - level)
        flops += 2 * 9 * area * (channels_in * channels + 5 * channels**2)
        if level + 1 < len(VAE_CHANNELS):
            flops += 2 * 9 * 4 * area * channels**2
        channels_in = channels
    return flops


def predicted_cost(gpu: Gpu, layout: str = "fp8") -> CostModel:
    """The engine's cost model, as its warm-up would find it if the prediction held."""
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
    )


def image_seconds(cost: CostModel, preset: str, width: int, height: int) -> float:
    """One image, alone."""
    tokens = cost.image_tokens(width, height)
    steps = PUBLISHED_PRESETS[preset].num_inference_steps
    return (
        cost.encode.seconds([PROMPT_TOKENS])
        + steps * cost.step_seconds(tokens, [PROMPT_TOKENS], 1)
        + cost.decode.seconds([tokens])
    )


def memory_table() -> Iterator[str]:
    yield "| predicted | weights | activations of a block, 1024x1024 | 2048x2048 |"
    yield "|---|---|---|---|"
    activations = " | ".join(f"{activation_bytes((side // 16) ** 2) / 1e9:.1f} GB" for side in (1024, 2048))
    for layout in BYTES_PER_PARAMETER:
        yield f"| {layout} | {weight_bytes(layout) / 1e9:.1f} GB | {activations} |"


def seconds_table() -> Iterator[str]:
    yield "| predicted, fp8 weights | size | a step | TURBO_12 | DEFAULT_20 | QUALITY_48 |"
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
