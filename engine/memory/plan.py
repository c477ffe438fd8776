"""Plans the memory of a device before the model is loaded. Torch-free."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from engine.config.key_names import UNREAD_OF_TEXT_ENCODER, UNREAD_OF_VAE
from engine.config.model_config import ModelConfig
from engine.config.options import EngineOptions
from engine.config.part_configs import PartConfigs
from engine.memory import bounds
from engine.memory.activations import FLOAT, Activations
from engine.memory.device_memory import cpu_has_bfloat16, device_bytes, uses_cuda
from engine.memory.weights import Headers, Keep, part_headers, stored_format, weight_bytes

GB = 1e9
TEXT_ENCODER, TRANSFORMER, UNCONDITIONAL = "text encoder", "transformer", "unconditional transformer"


@dataclass(frozen=True)
class MemoryPlan:
    """What one device holds. `capacity` in bytes; None if it is unknown, which bounds nothing.

    The unconditional transformer is left out if it is on another device.
    """

    config: ModelConfig
    options: EngineOptions
    configs: PartConfigs
    headers: Mapping[str, Headers]
    itemsize: int
    capacity: int | None
    is_cuda: bool

    @classmethod
    def of(
        cls, config: ModelConfig, options: EngineOptions, max_memory_gb: float | None = None
    ) -> "MemoryPlan":
        """Read the headers of the weights. `max_memory_gb` limits the memory of the device.

        Raises CheckpointError.
        """
        configs = PartConfigs.read(config.folders)
        device = next(iter(options.devices), None)
        is_cuda = uses_cuda(device)
        return cls(
            config=config,
            options=options,
            configs=configs,
            headers=_headers(config, options),
            itemsize=_itemsize(options, configs, is_cuda),
            capacity=_capacity(options, max_memory_gb),
            is_cuda=is_cuda,
        )

    def weights(self, keep: Keep = "stored", is_offloaded: bool | None = None) -> dict[str, int]:
        """Bytes of each part, if its matrices were kept so; the VAE is never quantised."""
        is_offloaded = self.options.offload == "text-encoder" if is_offloaded is None else is_offloaded
        parts = {
            name: weight_bytes(headers, self.itemsize, "stored" if name == "VAE" else keep)
            for name, headers in self.headers.items()
        }
        if self.options.adapter_memory_gb:
            parts["adapters"] = int(self.options.adapter_memory_gb * GB)
        if is_offloaded and self.is_cuda:
            layers = self.configs.text_encoder.text_config.num_hidden_layers
            parts[TEXT_ENCODER] = min(bounds.LAYERS_IN_FLIGHT, layers) * parts[TEXT_ENCODER] // layers
        return parts

    @cached_property
    def kept(self) -> dict[str, int]:
        """Bytes of each part on the device."""
        return self.weights()

    @property
    def stored_format(self) -> Keep:
        """The format of the transformer's matrices in the files."""
        return stored_format(self.headers[TRANSFORMER])

    @cached_property
    def work(self) -> Activations:
        return Activations(self.configs, self.itemsize, self.stored_format)

    def caches(self, width: int, height: int) -> int:
        """Cached prompts, modulations and rotary tables, and the images that may be in memory, of this
        size."""
        steps = max(preset.num_inference_steps for preset in self.config.presets.values())
        image = self.tokens(width, height)
        return (
            bounds.PROMPT_CACHE_BYTES
            + bounds.MODULATIONS * self._modulation(steps)
            + bounds.PACKINGS * self._rotary(image + self.longest_prompt)
            + self.options.max_running * self._latents(image)
        )

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
        encode, decode = work.paused_encode(prompt), work.paused_decode(image)
        return max(
            work.step(images * (image + prompt), images) + encode + decode,
            work.encode(prompt) + decode,
            work.decode(image) + encode,
        )

    def fields(self) -> dict[str, object]:
        """The plan for the log, in GB."""
        limits, default = self.config.limits, (self.config.default_width, self.config.default_height)
        sizes = (default, (limits.max_size, limits.max_size))
        return {
            "capacity_gb": self.capacity and in_gb(self.capacity),
            "weights_gb": {name: in_gb(size) for name, size in self.kept.items()},
            "cuda_graphs_gb": in_gb(self.graphs()),
            "caches_gb": _by_size(sizes, self.caches),
            "encode_gb": in_gb(self.work.encode(self.longest_prompt)),
            "step_gb": _by_size(
                sizes, lambda *size: self.work.step(self.tokens(*size) + self.longest_prompt)
            ),
            "decode_gb": _by_size(sizes, lambda *size: self.work.decode(self.tokens(*size))),
            "peak_gb": _by_size(sizes, self.peak),
            "max_size": limits.max_size,
            "max_batch_tokens": self.options.max_batch_tokens,
        }

    @property
    def longest_prompt(self) -> int:
        """Tokens."""
        return self.config.limits.max_prompt_tokens

    def held(self, width: int, height: int) -> int:
        """Bytes beside units of work: weights, CUDA graphs, and caches for images of one size."""
        return sum(self.kept.values()) + self.graphs() + self.caches(width, height)

    def _modulation(self, steps: int) -> int:
        """Of a schedule and a transformer."""
        dit = self.configs.transformer
        return steps * (4 * dit.num_layers + 1) * dit.hidden_size * self.itemsize

    def _rotary(self, tokens: int) -> int:
        return tokens * self.configs.transformer.attention_head_dim * FLOAT

    def _latents(self, tokens: int) -> int:
        return tokens * self.configs.transformer.in_channels * FLOAT


def _headers(config: ModelConfig, options: EngineOptions) -> dict[str, Headers]:
    folders = config.folders
    parts = {
        TEXT_ENCODER: part_headers(folders.text_encoder, UNREAD_OF_TEXT_ENCODER),
        TRANSFORMER: part_headers(folders.transformer),
        "VAE": part_headers(folders.vae, ("bn.",) if options.edits else UNREAD_OF_VAE),
    }
    if folders.unconditional and options.uncond_device is None:
        parts[UNCONDITIONAL] = part_headers(folders.unconditional)
    return parts


def _capacity(options: EngineOptions, max_memory_gb: float | None) -> int | None:
    """Bytes for each worker: those of the smallest device, which workers on a CPU share."""
    devices = options.devices or (None,)
    known = [size for device in devices if (size := device_bytes(device)) is not None]
    if known and not uses_cuda(devices[0]):
        known = [min(known) // len(devices)]
    limits = [*known, *([int(max_memory_gb * GB)] if max_memory_gb else [])]
    return min(limits, default=None)


def _itemsize(options: EngineOptions, configs: PartConfigs, is_cuda: bool) -> int:
    """Of the compute dtype. A small model on a CPU may compute in bfloat16 if that is faster."""
    if options.dtype == "float32":
        return FLOAT
    if is_cuda:
        return 2
    dit = configs.transformer
    block = dit.hidden_size * (4 * dit.hidden_size + 3 * dit.intermediate_size + 4 * dit.adaln_dim)
    is_measured = options.dtype is None and block < bounds.LARGE_BLOCK
    return FLOAT if is_measured or not cpu_has_bfloat16() else 2


def _by_size(sizes: Iterable[tuple[int, int]], count: Callable[[int, int], int]) -> dict[str, float]:
    return {f"{width}x{height}": in_gb(count(width, height)) for width, height in sizes}


def in_gb(size: float) -> float:
    """For people: GB, to the nearest 10 MB."""
    return round(size / GB, 2)
