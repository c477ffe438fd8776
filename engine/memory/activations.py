"""Bytes that units of work take on a device beside the weights. Torch-free.

Counted from the code that runs, with its default kernels: what it holds at the point where it holds most. The
tests compare each with the bytes of the real modules on `meta`.
"""

from dataclasses import dataclass

from engine.config.part_configs import PartConfigs
from engine.memory.bounds import MAX_WHOLE_AREA, STRIP_ELEMENTS
from engine.memory.weights import Kept

FLOAT = 4  # bytes of a float32


@dataclass(frozen=True, slots=True)
class Activations:
    """`itemsize` is that of the compute dtype, in bytes. `blocks` is how the matrices of the transformer's
    blocks are kept, `projection` how that of the text is.

    Sizes are in tokens of all samples together.
    """

    configs: PartConfigs
    itemsize: int
    blocks: Kept
    projection: Kept

    def step(self, tokens: int, images: int = 1) -> int:
        """A pass of a transformer, whose tokens include those of the prompts."""
        return self._step(images).bytes(tokens)

    def step_limit(self, available: int) -> int:
        """The most tokens of a batch of images whose step takes so many bytes."""
        return self._step(images=2).limit(available)

    def encode(self, tokens: int) -> int:
        """A run of the text encoder over all prompts, and the projection of its features."""
        return self._encode().bytes(tokens)

    def encode_limit(self, available: int) -> int:
        """The most tokens whose encode takes so many bytes."""
        return self._encode().limit(available)

    def _step(self, images: int) -> "_Passes":
        """In the feed-forward network of the last block, or in a norm with rotation."""
        dit, size = self.configs.transformer, self.itemsize
        hidden = 2 * dit.intermediate_size  # gate and up
        # x three times, attended, its norm, the result; and the modulation of a batch, token by token
        width = (6 if images == 1 else 9) * dit.hidden_size * size
        # Gate and up are scaled in float32, or what is computed of them is beside them.
        products = hidden * (size + FLOAT if self.blocks.format == "fp8" else 2 * size)
        # x, q, k and v, and six halves of q and k in float32
        rotated = dit.hidden_size * (4 * size + 6 * FLOAT)
        matrix = self.blocks.is_dequantised * dit.hidden_size * hidden * size
        return _Passes(max(width + products, rotated), width + hidden * size, matrix)

    def _encode(self) -> "_Passes":
        """The features as the layers leave them and in a row, and in float32; and their norm."""
        features, size = self.configs.text_encoder.features_dim, self.itemsize
        converted = FLOAT if size != FLOAT else 0
        matrix = self.projection.is_dequantised * features * self.configs.transformer.hidden_size * size
        return _Passes(features * (2 * size + converted), features * (FLOAT + size), matrix)

    def paused_encode(self, tokens: int) -> int:
        """An encode between two layers: the features taken so far."""
        return tokens * self.configs.text_encoder.features_dim * self.itemsize

    def decode(self, tokens: int) -> int:
        """A decode of images; in strips if they are large."""
        whole = 3 * self._widest(tokens)
        return whole if self._is_whole(tokens) else self.paused_decode(tokens) + self._strip(tokens)

    def paused_decode(self, tokens: int) -> int:
        """A decode between two parts, where it holds most."""
        widest = self._widest(tokens)
        return widest if self._is_whole(tokens) else widest + widest // 2

    def decode_limit(self, available: int) -> int:
        """The most tokens whose decode takes so many bytes."""
        token, most_whole = self._widest(1), self._most_whole()
        in_strips = int((available - self._strip(most_whole)) / (1.5 * token))
        return max(in_strips, min(available // (3 * token), most_whole))

    def encode_image(self, tokens: int) -> int:
        """An encode of source images; in strips if they are large."""
        widest = self._widest_encoded(tokens)
        return self._pixels(tokens) + (
            5 * widest if self._is_whole(tokens) else 2 * widest + self._strip(tokens)
        )

    def paused_encode_image(self, tokens: int) -> int:
        """An encode of source images between two parts, where it holds most."""
        widest = self._widest_encoded(tokens)
        return self._pixels(tokens) + (widest // 4 if self._is_whole(tokens) else 2 * widest)

    def _pixels(self, tokens: int) -> int:
        """Of source images, in float32 and in the compute dtype."""
        vae = self.configs.vae
        return tokens * vae.pixels_per_token**2 * vae.out_channels * (FLOAT + self.itemsize)

    def _widest_encoded(self, tokens: int) -> int:
        """The largest activation of the encoder: that of the pixels."""
        vae = self.configs.vae
        return self.itemsize * tokens * vae.pixels_per_token**2 * vae.block_out_channels[0]

    def _is_whole(self, tokens: int) -> bool:
        return tokens <= self._most_whole()

    def _most_whole(self) -> int:
        rows, columns = self.configs.vae.patch_size
        return MAX_WHOLE_AREA // (rows * columns)

    def _widest(self, tokens: int) -> int:
        """The largest activation of the decoder."""
        vae = self.configs.vae
        channels = tuple(reversed(vae.decoder_channels))
        before = (channels[0], *channels[:-1])
        area = tokens * vae.patch_size[0] * vae.patch_size[1]
        return self.itemsize * max(
            max(pair) * area * 4**level for level, pair in enumerate(zip(before, channels, strict=True))
        )

    def _strip(self, tokens: int) -> int:
        return min(STRIP_ELEMENTS, self._widest(tokens) // self.itemsize) * 2 * (self.itemsize + FLOAT)


@dataclass(frozen=True, slots=True)
class _Passes:
    """Work with two peaks: of so many bytes per token, or fewer beside a dequantised matrix."""

    token: int
    token_of_product: int
    matrix: int

    def bytes(self, tokens: int) -> int:
        return max(tokens * self.token, tokens * self.token_of_product + self.matrix)

    def limit(self, available: int) -> int:
        """The most tokens that take so many bytes."""
        return min(available // self.token, (available - self.matrix) // self.token_of_product)
