"""Plans the memory of a device before the model is loaded. Torch-free."""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from engine.config.key_names import UNREAD_OF_TEXT_ENCODER, UNREAD_OF_VAE
from engine.config.model_config import ModelConfig
from engine.config.options import EngineOptions
from engine.config.part_configs import PartConfigs
from engine.config.part_folders import PartFolders, loaded_folders
from engine.config.tensor_headers import read_headers
from engine.config.vae_encoder import ENCODER_KEY
from engine.errors import CheckpointError
from engine.memory import bounds
from engine.memory.activations import FLOAT, Activations
from engine.memory.device_memory import capacity, itemsize, uses_cuda
from engine.memory.weights import (
    Files,
    Format,
    Headers,
    Kept,
    kept,
    part_headers,
    stored_format,
    weight_bytes,
)
from engine.precision import Weights

GB = 1e9
TEXT_ENCODER, TRANSFORMER, UNCONDITIONAL = "text encoder", "transformer", "unconditional transformer"
IMITATION = "unconditional adapter"
# The largest matrix of the transformer's blocks, and the projection of the text.
_LARGEST, _PROJECTION = "layers.0.feed_forward.w1.weight", "llm_cond_proj.weight"


@dataclass(frozen=True)
class MemoryPlan:
    """What one device holds. `capacity` in bytes; None if it is unknown, which bounds nothing.

    The unconditional transformer is left out if it is on another device. Weights that may be widened ("auto")
    count as stored. `files`: plan as if these held every matrix in one format.
    """

    config: ModelConfig
    options: EngineOptions
    configs: PartConfigs
    headers: Mapping[str, Headers]
    itemsize: int
    capacity: int | None
    is_cuda: bool
    files: Files = "stored"

    @classmethod
    def of(
        cls, config: ModelConfig, options: EngineOptions, max_memory_gb: float | None = None
    ) -> "MemoryPlan":
        """Read the headers of the weights. `max_memory_gb` limits the memory of the device.

        Raises CheckpointError or OptionError.
        """
        folders = loaded_folders(config.folders, options)
        configs = PartConfigs.read(folders)
        device = next(iter(options.devices), None)
        is_cuda = uses_cuda(device)
        return cls(
            config=config,
            options=options,
            configs=configs,
            headers=_headers(folders, options),
            itemsize=itemsize(options, configs, is_cuda),
            capacity=capacity(options, max_memory_gb),
            is_cuda=is_cuda,
        )

    def with_weights(self, weights: Weights) -> "MemoryPlan":
        """The plan with another `--weights`."""
        precision = replace(self.options.precision, weights=weights)
        return replace(self, options=replace(self.options, precision=precision))

    @cached_property
    def kept(self) -> dict[str, int]:
        """Bytes of each part on the device; the VAE is never quantised."""
        options = self.options
        parts = {
            name: weight_bytes(headers, self.itemsize)
            if name in ("VAE", IMITATION)
            else weight_bytes(headers, self.itemsize, options.precision, self.files)
            for name, headers in self.headers.items()
        }
        if options.adapter_memory_gb:
            parts["adapters"] = int(options.adapter_memory_gb * GB)
        if options.offload and self.is_cuda:
            layers = self.configs.text_encoder.text_config.num_hidden_layers
            parts[TEXT_ENCODER] = min(bounds.LAYERS_IN_FLIGHT, layers) * parts[TEXT_ENCODER] // layers
        return parts

    @property
    def stored_format(self) -> Format:
        """The format of the transformer's matrices in the files."""
        return stored_format(_LARGEST, self.headers[TRANSFORMER])

    @cached_property
    def work(self) -> Activations:
        return Activations(self.configs, self.itemsize, *map(self._kept, (_LARGEST, _PROJECTION)))

    @property
    def encodes_images(self) -> bool:
        """Whether the VAE's encoder is loaded."""
        return ENCODER_KEY in self.headers["VAE"]

    def caches(self, width: int, height: int) -> int:
        """Cached prompts, modulations and rotary tables, and the images that may be in memory, of this
        size."""
        steps = max(preset.num_inference_steps for preset in self.config.presets.values())
        image = self.tokens(width, height)
        return (
            bounds.PROMPT_CACHE_BYTES
            + bounds.MODULATIONS * self._modulation(steps)
            + bounds.PACKINGS * self._rotary(image + self.longest_prompt)
            + self.options.max_running * self.sample(width, height)
        )

    def sample(self, width: int, height: int) -> int:
        """Of an image in progress: its latents; of its source the latents, what is painted and the noise."""
        return (4 if self.encodes_images else 1) * self._latents(self.tokens(width, height))

    def graphs(self) -> int:
        """CUDA graphs: the inputs of each, and one set of activations for all."""
        if not (self.options.cuda_graphs and self.is_cuda):
            return 0
        dit, transformers = self.configs.transformer, 1 + (UNCONDITIONAL in self.headers)
        inputs = bounds.GRAPH_TOKENS * dit.hidden_size + 4 * dit.num_layers * dit.hidden_size
        shapes = bounds.GRAPH_SHAPES * inputs * self.itemsize
        return transformers * (shapes + self.work.step(bounds.GRAPH_TOKENS))

    def tokens(self, width: int, height: int) -> int:
        """Tokens of an image."""
        pixels = self.configs.vae.pixels_per_token
        return (width // pixels) * (height // pixels)

    def peak(self, width: int, height: int, images: int = 1) -> int:
        """The most bytes that images of one size, which share a batch, take with everything else."""
        return self.held(width, height) + self.running(self.tokens(width, height), images)

    def alone(self, width: int, height: int, prompt: int, steps: int) -> int:
        """The most bytes that one image takes on an idle device; nothing is paused or left in a cache."""
        image, work = self.tokens(width, height), self.work
        text = prompt * self.configs.transformer.hidden_size * self.itemsize
        kept = text + 2 * self._modulation(steps) + 2 * self._rotary(image + prompt) + self._latents(image)
        units = (work.step(image + prompt), work.encode(prompt), work.decode(image))
        return sum(self.kept.values()) + kept + max(units)

    def running(self, image: int, images: int = 1) -> int:
        """The most bytes of a unit of work, while an encode and a decode of an image are paused."""
        prompt, work = self.longest_prompt, self.work
        encode, paused, decode = work.encode(prompt), self.paused_encode(image), work.paused_decode(image)
        if self.encodes_images:
            encode = max(encode, work.encode_image(image))
        return max(
            work.step(images * (image + prompt), images) + paused + decode,
            encode + decode,
            work.decode(image) + paused,
        )

    def paused_encode(self, image: int) -> int:
        """The most bytes of an encode, of a prompt or a source, between two parts."""
        source = self.work.paused_encode_image(image) if self.encodes_images else 0
        return max(self.work.paused_encode(self.longest_prompt), source)

    def fields(self) -> dict[str, object]:
        """The plan for the log, in GB."""
        limits, default = self.config.limits, (self.config.default_width, self.config.default_height)
        sizes = (default, (limits.max_size, limits.max_size))
        return {
            "capacity_gb": self.capacity and in_gb(self.capacity),
            "precision": asdict(self.options.precision),
            "weights_gb": {name: in_gb(size) for name, size in self.kept.items()},
            "widened_gb": in_gb(sum(self.with_weights("widened").kept.values())),
            "cuda_graphs_gb": in_gb(self.graphs()),
            "caches_gb": _by_size(sizes, self.caches),
            "encode_gb": in_gb(self.work.encode(self.longest_prompt)),
            "encode_image_gb": _by_size(sizes, self._encode_image),
            "step_gb": _by_size(
                sizes, lambda *size: self.work.step(self.tokens(*size) + self.longest_prompt)
            ),
            "decode_gb": _by_size(sizes, lambda *size: self.work.decode(self.tokens(*size))),
            "peak_gb": _by_size(sizes, self.peak),
            "max_size": limits.max_size,
            "max_batch_tokens": self.options.max_batch_tokens,
            "max_running": self.options.max_running,
        }

    @property
    def longest_prompt(self) -> int:
        """Tokens."""
        return self.config.limits.max_prompt_tokens

    def held(self, width: int, height: int) -> int:
        """Bytes beside units of work: weights, CUDA graphs, and caches for images of one size."""
        return sum(self.kept.values()) + self.graphs() + self.caches(width, height)

    def _kept(self, key: str) -> Kept:
        """How a matrix of the transformer is kept; if there is none, the worker says so."""
        headers = self.headers[TRANSFORMER]
        return kept(key, headers, self.options.precision, self.files) if key in headers else Kept()

    def _modulation(self, steps: int) -> int:
        """Of a schedule and a transformer."""
        dit = self.configs.transformer
        return steps * (4 * dit.num_layers + 1) * dit.hidden_size * self.itemsize

    def _rotary(self, tokens: int) -> int:
        return tokens * self.configs.transformer.attention_head_dim * FLOAT

    def _encode_image(self, width: int, height: int) -> int:
        return self.work.encode_image(self.tokens(width, height)) if self.encodes_images else 0

    def _latents(self, tokens: int) -> int:
        return tokens * self.configs.transformer.in_channels * FLOAT


def _headers(folders: PartFolders, options: EngineOptions) -> dict[str, Headers]:
    parts = {
        TEXT_ENCODER: part_headers(folders.text_encoder, UNREAD_OF_TEXT_ENCODER),
        TRANSFORMER: part_headers(folders.transformer),
        "VAE": part_headers(folders.vae, ("bn.",) if options.edits else UNREAD_OF_VAE),
    }
    if folders.unconditional and options.uncond_device is None:
        parts[UNCONDITIONAL] = part_headers(folders.unconditional)
    if options.uncond_adapter:
        with contextlib.suppress(CheckpointError):  # the worker says what is wrong with the file
            parts[IMITATION] = read_headers(Path(options.uncond_adapter))
    return parts


def _by_size(sizes: Iterable[tuple[int, int]], count: Callable[[int, int], int]) -> dict[str, float]:
    return {f"{width}x{height}": in_gb(count(width, height)) for width, height in sizes}


def in_gb(size: float) -> float:
    """For people: GB, to the nearest 10 MB."""
    return round(size / GB, 2)
