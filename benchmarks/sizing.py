"""Predict the cost model of the published sizes, for the simulations of `benchmarks.fleet`.

Operations and bytes are counted from the published model sizes. The time of a pass is its operations divided
by a share of the GPU's peak (SHARE), plus one read of the weights. It is calibrated on a step
measured by `python -m benchmarks.published`: 284 ms at 1024x1024 on one H100, with bfloat16 weights and a
prompt of 100 tokens. The share for the VAE and for other GPUs is assumed.
"""

from benchmarks.gpus import BYTES_PER_WEIGHT, SHARE, VAE_SHARE, Gpu
from engine.config.model_config import PUBLISHED_PRESETS
from engine.config.options import EngineOptions
from engine.cost import CostModel, LinearCost

PIXELS_PER_TOKEN = 16
PROMPT_TOKENS = 300  # a structured caption

WIDTH, LAYERS, FFN, ADALN, FEATURES = 4608, 34, 12288, 512, 53248
TEXT_WIDTH, TEXT_LAYERS, TEXT_FFN, TEXT_KV, VOCABULARY = 4096, 36, 12288, 1024, 151_936
VAE_CHANNELS = (512, 512, 256, 128)  # of the decoder, from the latent resolution to the image resolution

DIT_BLOCK = 4 * WIDTH**2 + 3 * WIDTH * FFN
DIT_PARAMETERS = LAYERS * (DIT_BLOCK + 4 * WIDTH * ADALN) + FEATURES * WIDTH
TEXT_BLOCK = 2 * TEXT_WIDTH**2 + 2 * TEXT_WIDTH * TEXT_KV + 3 * TEXT_WIDTH * TEXT_FFN
TEXT_PARAMETERS = TEXT_LAYERS * TEXT_BLOCK + VOCABULARY * TEXT_WIDTH


def weight_bytes(layout: str) -> float:
    """Bytes of both transformers and the text encoder. The VAE (under 0.2 GB) is not counted."""
    return (2 * DIT_PARAMETERS + TEXT_PARAMETERS) * BYTES_PER_WEIGHT[layout]


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
    reading = BYTES_PER_WEIGHT[layout] / gpu.bandwidth
    rate = gpu.bf16 * SHARE
    image_flops = decode_flops(PIXELS_PER_TOKEN**2)
    return CostModel(
        pass_=LinearCost(DIT_PARAMETERS * reading, 2 * LAYERS * DIT_BLOCK / rate, 4 * LAYERS * WIDTH / rate),
        encode=LinearCost(
            TEXT_PARAMETERS * reading,
            (2 * TEXT_LAYERS * TEXT_BLOCK + 2 * FEATURES * WIDTH) / rate,
            4 * TEXT_LAYERS * TEXT_WIDTH / rate,
        ),
        decode=LinearCost(0.0, image_flops / (gpu.bf16 * VAE_SHARE)),
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
