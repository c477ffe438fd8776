"""How the engine runs. Torch-free."""

from dataclasses import dataclass, field
from typing import Literal

from engine.precision import PrecisionOptions


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How the engine runs; one worker per device. Without `devices`: cuda if available, else cpu.

    `uncond_device`: device of the unconditional transformer, whose pass then runs in parallel.
    `dtype`: "float32", or "bfloat16" where the device has instructions for it. None: bfloat16 there, unless
    the model is small and float32 is measured to be faster.
    `precision`: how the weights are kept and multiplied.
    `compile`: whether to compile the transformers' blocks at start. "auto": on cuda at start, on a CPU beside
    serving, once steps have taken `compile_after_seconds`.
    `offload`: "text-encoder" keeps its weights in the host's memory; on a CPU they are there anyway.
    `kernels`: pinned kernels as (operation or one of its shapes, candidate); the others are measured.
    `cuda_graphs`: on cuda, record small passes and replay them.
    `max_batch_size` (1..64): samples of a step or decode, and prompts of an encode.
    `max_batch_tokens`: image and prompt tokens of such a batch; `max_encode_tokens` limits an encode of
    prompts further, `max_decode_tokens` a decode and an encode of source images. A single member may have
    more.
    `max_running` (1..1024): samples in memory.
    `edits`: whether to load the VAE encoder, if the checkpoint has one.
    `hang_seconds`: minimum silence after which a worker counts as hung.
    `adapter_memory_gb`: memory for adapters on each device, in units of 10^9 bytes; with 0 none can be used.
    `adapter_ignore`: patterns of keys in their files that are not read, such as "*.dora_scale".
    `uncond_adapter`: file of an adapter with which the conditional transformer runs the unconditional pass
    too; the unconditional transformer is not loaded.
    `load_seconds`: time limit of a worker's start.
    `max_start_failures`: consecutive failed starts after which a device counts as failed. Once all devices
    have failed, the engine is dead.
    """

    devices: tuple[str, ...] = ()
    uncond_device: str | None = None
    dtype: str | None = None
    precision: PrecisionOptions = field(default_factory=PrecisionOptions)
    compile: bool | Literal["auto"] = "auto"
    compile_after_seconds: float = 60.0
    offload: Literal["text-encoder"] | None = None
    kernels: tuple[tuple[str, str], ...] = ()
    cuda_graphs: bool = False
    max_batch_size: int = 8
    max_batch_tokens: int = 32_768
    max_encode_tokens: int = 32_768
    max_decode_tokens: int = 32_768
    max_running: int = 64
    adapter_memory_gb: float = 0.0
    adapter_ignore: tuple[str, ...] = ()
    uncond_adapter: str | None = None
    hang_seconds: float = 30.0
    load_seconds: float = 1800.0
    max_start_failures: int = 3
    edits: bool = True
