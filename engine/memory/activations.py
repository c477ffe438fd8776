"""Bytes that units of work take on a device beside the weights. Torch-free.

Counted from the code that runs, with its default kernels: what it holds at the point where it holds most. The
tests compare each with the bytes of the real modules on `meta`.
"""

from dataclasses import dataclass

from engine.config.part_configs import PartConfigs
from engine.memory.bounds import MAX_WHOLE_AREA, STRIP_ELEMENTS
from engine.memory.weights import Keep

FLOAT = 4  # bytes of a float32


@dataclass(frozen=True, slots=True)
class Activations:
    """`itemsize` is that of the compute dtype, in bytes. `stored` is the format of the matrices: those that
    are quantised are dequantised at use.

    Sizes are in tokens of all samples together.
    """

    configs: PartConfigs
    itemsize: int
    stored: Keep = "plain"

    def step(self, tokens: int, images: int = 1) -> int:
        """A pass of a transformer, whose tokens include those of the prompts."""
        return tokens * self.step_token(images) + self.step_matrix()

    def step_matrix(self) -> int:
        """The largest matrix of a block, dequantised: gate and up."""
        dit = self.configs.transformer
        return self._widens * 2 * dit.hidden_size * dit.intermediate_size * self.itemsize

    def step_token(self, images: int) -> int:
        """Of each token, in the feed-forward network of the last block, or in a norm with rotation."""
        dit, size = self.configs.transformer, self.itemsize
        # x three times, attended, its norm, the result; and the modulation of a batch, token by token
        width = (6 if images == 1 else 9) * dit.hidden_size * size
        hidden = 2 * dit.intermediate_size
        products = hidden * (size + FLOAT if self.stored == "fp8" else 2 * size)  # fp8: scaled in float32
        # x, q, k and v, and six halves of q and k in float32
        return max(width + products, dit.hidden_size * (4 * size + 6 * FLOAT))

    def encode(self, tokens: int) -> int:
        """A run of the text encoder over all prompts, and the projection of its features."""
        return tokens * self.encode_token() + self.encode_matrix()

    def encode_matrix(self) -> int:
        """The projection of the features, dequantised."""
        features = self.configs.text_encoder.features_dim
        return self._widens * features * self.configs.transformer.hidden_size * self.itemsize

    def encode_token(self) -> int:
        """Of each token: the features as the layers leave them and in a row, and in float32."""
        converted = FLOAT if self.itemsize != FLOAT else 0
        return self.configs.text_encoder.features_dim * (2 * self.itemsize + converted)

    @property
    def _widens(self) -> bool:
        return self.stored != "plain"

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
