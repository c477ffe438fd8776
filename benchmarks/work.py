"""The operations and bytes of each stage of the published model, counted from its sizes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.gpus import BYTES_PER_WEIGHT, Gpu
from engine.config.part_configs import (
    PUBLISHED_TAPS,
    DiTConfig,
    PartConfigs,
    TextConfig,
    TextEncoderConfig,
    VAEConfig,
)

VALUE = 2  # bytes of a bfloat16
PROMPT = 300  # tokens of a structured caption
PUBLISHED = PartConfigs(
    TextEncoderConfig(TextConfig(), PUBLISHED_TAPS), DiTConfig(), DiTConfig(), VAEConfig()
)


@dataclass(frozen=True, slots=True)
class Work:
    """Operations of products with weights and of all else; weights, and bytes of activations read and
    written."""

    products: float = 0.0
    others: float = 0.0
    weights: float = 0.0
    traffic: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.products + other.products,
            self.others + other.others,
            self.weights + other.weights,
            self.traffic + other.traffic,
        )

    @property
    def flops(self) -> float:
        return self.products + self.others

    def seconds(self, gpu: Gpu, layout: str) -> float:
        """At the peak rates: of the arithmetic or of the memory, whichever takes longer."""
        rate = gpu.fp8 if layout == "fp8" else gpu.bf16
        arithmetic = self.products / rate + self.others / gpu.bf16
        return max(arithmetic, (self.weights * BYTES_PER_WEIGHT[layout] + self.traffic) / gpu.bandwidth)


def product(rows: int, inputs: int, outputs: int) -> Work:
    """A product with a matrix of weights."""
    return Work(2 * rows * inputs * outputs, 0, inputs * outputs, VALUE * rows * (inputs + outputs))


def attention(queries: int, keys: int, width: int, key_width: int) -> Work:
    return Work(0, 4 * queries * keys * width, 0, VALUE * (2 * queries * width + 2 * keys * key_width))


def convolution(area: int, inputs: int, outputs: int, kernel: int = 3, reduction: int = 1) -> Work:
    """`area` is that of the output, whose input is `reduction` times smaller."""
    weights = kernel**2 * inputs * outputs
    return Work(0, 2 * area * weights, weights, VALUE * area * (inputs / reduction + outputs))


def total(works: Iterator[Work]) -> Work:
    return sum(works, Work())


def encode(configs: PartConfigs, tokens: int) -> Work:
    """The text encoder and the projection of its features."""
    text, dit = configs.text_encoder.text_config, configs.transformer
    layer = total(_text_layer(text, tokens))
    layers = total(layer for _ in range(text.num_hidden_layers))
    return layers + product(tokens, configs.text_encoder.features_dim, dit.hidden_size)


def _text_layer(text: TextConfig, tokens: int) -> Iterator[Work]:
    width, inner = text.hidden_size, text.intermediate_size
    queries, keys = (heads * text.head_dim for heads in (text.num_attention_heads, text.num_key_value_heads))
    yield from (product(tokens, width, outputs) for outputs in (queries, keys, keys))
    yield attention(tokens, tokens, queries, keys)
    yield product(tokens, queries, width)
    yield from (product(tokens, *sizes) for sizes in ((width, inner), (width, inner), (inner, width)))


def modulate(configs: PartConfigs, steps: int) -> Work:
    """What depends on the times of a schedule alone, of one transformer."""
    dit = configs.transformer
    width, adaln = dit.hidden_size, dit.adaln_dim
    embedding = product(steps, width, width) + product(steps, width, width) + product(steps, width, adaln)
    blocks = total(product(steps, adaln, 4 * width) for _ in range(dit.num_layers))
    return embedding + blocks + product(steps, adaln, width)


def step(configs: PartConfigs, image: int, prompt: int) -> Work:
    """A pass of both transformers over one image, of `image` tokens."""
    return forward(configs.transformer, image, prompt) + forward(configs.transformer, image, 0)


def forward(dit: DiTConfig, image: int, prompt: int) -> Work:
    """A pass of a transformer. The last block computes the tokens of the image only."""
    width, ends = dit.hidden_size, product(image, dit.in_channels, dit.hidden_size)
    rows = [image + prompt] * (dit.num_layers - 1) + [image]
    blocks = total(each for count in rows for each in _block(dit, count, image + prompt))
    return ends + blocks + product(image, width, dit.in_channels)


def _block(dit: DiTConfig, rows: int, keys: int) -> Iterator[Work]:
    width, inner = dit.hidden_size, dit.intermediate_size
    yield product(keys, width, 3 * width)
    yield attention(rows, keys, width, width)
    yield product(rows, width, width)
    yield product(rows, width, 2 * inner)
    yield product(rows, inner, width)


def decode(vae: VAEConfig, area: int) -> Work:
    """The decoder, over `area` latents."""
    channels, latent = tuple(reversed(vae.decoder_channels)), vae.latent_channels
    quant = convolution(area, latent, latent, kernel=1) if vae.use_post_quant_conv else Work()
    ends = convolution(area, latent, channels[0]) + convolution(
        area * vae.scale_factor**2, channels[-1], vae.out_channels
    )
    return quant + ends + total(_middle(vae, area, channels[0])) + total(_levels(vae, area, channels))


def _middle(vae: VAEConfig, area: int, width: int) -> Iterator[Work]:
    yield from (convolution(area, width, width) for _ in range(4))
    if vae.mid_block_add_attention:
        yield attention(area, area, width, width)
        yield from (product(area, width, width) for _ in range(4))


def _levels(vae: VAEConfig, area: int, channels: Sequence[int]) -> Iterator[Work]:
    before = channels[0]
    for level, width in enumerate(channels):
        size = area * 4**level
        yield convolution(size, before, width)
        yield from (convolution(size, width, width) for _ in range(2 * vae.layers_per_block + 1))
        if before != width:
            yield convolution(size, before, width, kernel=1)
        if level + 1 < len(channels):
            yield convolution(4 * size, width, width, reduction=4)
        before = width


def tokens(side: int) -> int:
    return (side // PUBLISHED.vae.pixels_per_token) ** 2


def stages(side: int, prompt: int = PROMPT) -> dict[str, Work]:
    """The work of one image: once, in each step, once."""
    return {
        "encode": encode(PUBLISHED, prompt),
        "step": step(PUBLISHED, tokens(side), prompt),
        "decode": decode(PUBLISHED.vae, 4 * tokens(side)),
    }
