"""Settings of the model and its devices."""

from pathlib import Path
from typing import Literal

from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
)

from engine.precision import Matmul, Quantization, Weights


class EngineSettings(BaseModel):
    """What is served and on which devices."""

    model: str = Field(
        description="Checkpoint folder, or Hugging Face repository as [hf://]owner/name[@revision]"
    )
    transformer: str | None = Field(
        None,
        description="Folder or repository, as for --model, of a transformer that replaces the one of the "
        "checkpoint, with its presets",
    )
    presets: Path | None = Field(
        None,
        description="JSON file with the presets, an object as `presets` of ideoserve.json; replaces those of "
        "the checkpoint and of --transformer",
    )
    model_name: str | None = Field(
        None, description="Model id in the API; if unset, the id that the checkpoint gives"
    )

    device: Literal["cpu", "cuda"] | None = Field(
        None, description="Device type of the model; if unset, cuda where available, else cpu"
    )
    devices: str | None = Field(
        None, description="Comma-separated devices with one replica of the model each, such as cuda:0,cuda:1"
    )
    uncond_device: str | None = Field(
        None,
        description="Device of the unconditional transformer, such as cuda:1; if unset, the model's device",
    )
    dtype: Literal["float32", "bfloat16"] | None = Field(
        None,
        description="Compute type; if unset, bfloat16 where the device has instructions for it, unless the "
        "model is small and float32 is measured to be faster; a CPU without them always computes in float32",
    )
    weights: Weights = Field(
        "auto",
        description="How fp8 and nf4 weights are kept in memory: stored, as in the checkpoint, or widened to "
        "the compute type, with the same images; auto: widened if they fit and are measured to be faster so",
    )
    quantize: Quantization | None = Field(
        None,
        description="Quantise weights that are not quantised when the checkpoint is loaded; if unset, they "
        "are kept in the compute type",
    )
    matmul: Matmul = Field(
        "exact",
        description="How layers with fp8 weights multiply: exact, in the compute type, or fp8, with "
        "activations quantised per token, which changes images slightly; fp8 needs a CPU or a GPU of compute "
        "capability 8.9 or later",
    )
    compile: bool | Literal["auto"] = Field(
        "auto",
        description="Compile the transformer blocks at startup (on a CPU this needs a C++ compiler); auto: "
        "on cuda at startup, on a CPU with a compiler beside serving, after 60 seconds of steps",
    )
    edits: Literal["on", "off"] = Field(
        "on",
        description="Take images as input (on), which loads the VAE encoder if the checkpoint has one; "
        "or not (off)",
    )
    kernels: str | None = Field(
        None,
        description="Comma-separated pins NAME=CANDIDATE; NAME is an operation, such as attention, or one of "
        "its shapes, such as attention.64.short; other kernels are measured at the first start",
    )
    cuda_graphs: bool = Field(
        False,
        description="On cuda, replay transformer passes of at most 1024 tokens from CUDA graphs, one per "
        "prompt length; useful for small images of recurring prompts",
    )
    max_memory_gb: float | None = Field(
        None,
        gt=0,
        le=100_000,
        allow_inf_nan=False,
        description="Memory that each device may use, in GB of 10^9 bytes; image sizes and batches are "
        "limited to what fits; if unset, all memory of the device",
    )
    offload: Literal["text-encoder"] | None = Field(
        None,
        description="Part of the model whose weights stay in the memory of the host and are copied to the "
        "GPU for prompts that are not cached; if unset, none",
    )
    max_batch_size: int = Field(
        8, ge=1, le=64, description="Maximum images per denoising step or decode, and prompts per encode"
    )
    max_running: int = Field(
        64,
        ge=1,
        le=1024,
        description="Maximum images in the memory of a device; priority `batch` holds at most half of them",
    )

    adapters: Path | None = Field(
        None,
        description="Folder of LoRA adapters (safetensors files, and folders with one each), or JSON file "
        "that lists them; changes are noticed within seconds",
    )
    adapter_memory_gb: float = Field(
        2.0, gt=0, le=1024, description="Memory of loaded adapters on each device, in units of 10^9 bytes"
    )
    adapter_ignore: str | None = Field(
        None,
        description="Comma-separated patterns of keys in the files of adapters that are not read, such as "
        "*.dora_scale",
    )
    uncond_adapter: Path | None = Field(
        None,
        description="Safetensors file of the adapter that makes the conditional transformer run the "
        "unconditional pass too; the unconditional transformer is not loaded",
    )

    @field_validator("quantize")
    @classmethod
    def _is_not_undone(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value and info.data.get("weights") == "widened":
            raise ValueError("does not go with weights widened, which undoes it")
        return value

    @field_validator("matmul")
    @classmethod
    def _has_fp8_weights(cls, value: str, info: ValidationInfo) -> str:
        if value == "fp8" and info.data.get("quantize") == "nf4":
            raise ValueError("fp8 needs fp8 weights, not quantize nf4")
        return value

    @field_validator("compile", mode="wrap")
    @classmethod
    def _names_all_choices(cls, value: object, parse: ValidatorFunctionWrapHandler) -> object:
        try:
            return parse(value)
        except ValidationError:
            raise ValueError("must be auto, true or false") from None
