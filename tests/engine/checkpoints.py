"""Writes small random checkpoints in each published layout.

Each has a referee: the pipeline of diffusers with the same weights, dequantised where they are quantised. The
text model has all 36 layers, the two DiTs have different weights, and the files include the vision tower.
"""

import copy
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Ideogram4Pipeline,
    Ideogram4Transformer2DModel,
)
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLModel

from tests.engine import quantisers

LAYOUTS = ("diffusers", "sharded", "official", "official-fp8", "official-nf4")
HIDDEN, TAPS = 64, 13
LATENT_NORM = Path(__file__).parents[2] / "engine" / "checkpoint" / "latent_norm.json"

TEXT_CONFIG = {
    "hidden_size": HIDDEN,
    "intermediate_size": 128,
    "num_hidden_layers": 36,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "vocab_size": 512,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 5_000_000,
        "mrope_section": [4, 2, 2],
        "mrope_interleaved": True,
    },
}
VISION_CONFIG = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
}
DIT_CONFIG = {
    "num_layers": 2,
    "attention_head_dim": 32,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "adaln_dim": 64,
    "llm_features_dim": HIDDEN * TAPS,
    "mrope_section": (6, 5, 5),
}
VAE_CONFIG = {"block_out_channels": (16, 32, 32, 64), "norm_num_groups": 8, "sample_size": 64}

TINY_TEXT = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "vocab_size": 512,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000, "mrope_section": [2, 1, 1]},
}
TINY_DIT = {
    "in_channels": 16,
    "num_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "adaln_dim": 8,
    "llm_features_dim": 32,
    "mrope_section": (3, 2, 2),
}
TINY_VAE = {
    "latent_channels": 4,
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 16,
}
TINY_DECLARED: dict[str, Any] = {
    "id": "tiny",
    "limits": {
        "min_size": 8,
        "max_size": 16,
        "multiple_of": 4,
        "max_aspect_ratio": 2.0,
        "max_prompt_tokens": 64,
    },
    "default_size": "16x8",
    "presets": {
        "FAST": {"num_inference_steps": 2, "guidance_schedule": [[3.0, 1], [1.0, 1]], "mu": 0.0, "std": 1.5}
    },
}

# Its line breaks and indents vanish only with the settings of transformers.
CHAT_TEMPLATE = """{% for message in messages %}
{{ '<|im_start|>' + message['role'] }}
    {% for part in message['content'] %}
{{ part['text'] }}
    {% endfor %}
{{ '<|im_end|>' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant' }}
{% endif %}"""


@dataclass(frozen=True)
class Checkpoint:
    """A folder to load, and the pipeline of diffusers with the weights that the engine must have."""

    path: Path
    referee: Any


def write_checkpoint(folder: Path, layout: str) -> Checkpoint:
    """Write the checkpoint of `layout` (one of LAYOUTS) into `folder`; the same weights in each."""
    pipeline = random_pipeline()
    shards = {"max_shard_size": "400KB"} if layout == "sharded" else {}
    pipeline.save_pretrained(folder, **shards)
    if not layout.startswith("official"):
        return Checkpoint(folder, pipeline)
    referee = copy.deepcopy(pipeline)
    _publish_latent_norm(referee.vae)
    quantise = {"official-fp8": quantisers.fp8, "official-nf4": quantisers.nf4}.get(layout)
    for part in ("transformer", "unconditional_transformer"):
        _rewrite(folder / part, getattr(referee, part), to_official, quantise)
    _rewrite(folder / "text_encoder", referee.text_encoder, dict, quantise)
    _mark_quantised(folder / "text_encoder" / "config.json", layout)
    return Checkpoint(folder, referee)


def random_pipeline(
    text: dict[str, Any] = TEXT_CONFIG, dit: dict[str, Any] = DIT_CONFIG, vae: dict[str, Any] = VAE_CONFIG
) -> Any:
    """A pipeline of diffusers with random weights, including norms and biases."""
    vision = VISION_CONFIG | {"out_hidden_size": text["hidden_size"]}
    text_config = Qwen3VLConfig(text_config=text, vision_config=vision)
    pipeline = Ideogram4Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=randomise(AutoencoderKLFlux2(**vae), seed=1),
        text_encoder=randomise(Qwen3VLModel(text_config), seed=2),
        tokenizer=train_tokenizer(),
        transformer=randomise(Ideogram4Transformer2DModel(**dit), seed=3),
        unconditional_transformer=randomise(Ideogram4Transformer2DModel(**dit), seed=4),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def write_tiny(folder: Path) -> Path:
    """Write the smallest checkpoint that serves: two text layers, one block, tokens 4 pixels wide."""
    random_pipeline(TINY_TEXT, TINY_DIT, TINY_VAE).save_pretrained(folder)
    edit_json(folder / "text_encoder" / "config.json", lambda config: config.update(tap_layers=[0, 1]))
    (folder / "ideoserve.json").write_text(json.dumps(TINY_DECLARED), "utf-8")
    return folder


@torch.no_grad()
def randomise(module: Any, seed: int) -> Any:
    """Fill every parameter, and the statistics of a batch norm."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            parameter.copy_(noise / parameter[0].numel() ** 0.5)
        else:
            parameter.copy_(0.1 * noise + (1 if "norm" in name and name.endswith("weight") else 0))
    for name, buffer in module.named_buffers():
        if name == "bn.running_mean":
            buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
        elif name == "bn.running_var":
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return module.eval()


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with Qwen's chat tokens, trained on a few sentences. It can encode any text."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["user assistant a red fox in the snow", "a poster that says HELLO"], trainer
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>"
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _publish_latent_norm(vae: Any) -> None:
    """Give the referee the constants of the official layout, in which the file's statistics are ignored."""
    published = json.loads(LATENT_NORM.read_text("utf-8"))
    vae.bn.running_mean.copy_(torch.tensor(published["shift"]))
    vae.bn.running_var.copy_(torch.tensor(published["scale"]) ** 2 - vae.config.batch_norm_eps)


Quantise = Callable[[str, Tensor], tuple[dict[str, Tensor], Tensor]]


def _rewrite(
    folder: Path,
    module: nn.Module,
    rename: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    quantise: Quantise | None,
) -> None:
    """Rewrite the folder's file with official keys, quantised, and put the dequantised values in `module`."""
    (file,) = folder.glob("*.safetensors")
    stored: dict[str, Tensor] = {}
    for key, tensor in rename(load_file(file)).items():
        if quantise is None or not _is_linear(key, tensor):
            stored[key] = tensor
            continue
        tensors, widened = quantise(key, tensor)
        stored |= tensors
        _overwrite(module, key, widened)
    save_file(stored, file)


def _is_linear(key: str, tensor: Tensor) -> bool:
    return tensor.dim() == 2 and "embed_" not in key and not key.startswith("visual.")


def to_official(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Map tensors of a DiT from the keys of diffusers to the official keys."""
    official: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if ".to_q." in key:
            parts = [tensors[key.replace(".to_q.", f".to_{part}.")] for part in "qkv"]
            official[key.replace(".to_q.", ".qkv.")] = torch.cat(parts)
        elif ".to_k." not in key and ".to_v." not in key:
            official[key.replace(".to_out.0.", ".o.")] = tensor
    return official


@torch.no_grad()
def _overwrite(module: nn.Module, official_key: str, value: Tensor) -> None:
    if ".qkv." in official_key:
        for part, rows in zip("qkv", value.chunk(3), strict=True):
            module.get_parameter(official_key.replace(".qkv.", f".to_{part}.")).copy_(rows)
        return
    module.get_parameter(official_key.replace("attention.o.", "attention.to_out.0.")).copy_(value)


def _mark_quantised(file: Path, layout: str) -> None:
    config = json.loads(file.read_text("utf-8"))
    if layout == "official-fp8":
        config["ideogram_fp8_weight_only"] = True
    if layout == "official-nf4":
        config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    file.write_text(json.dumps(config), "utf-8")


def edit_tensors(file: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    """Rewrite a safetensors file after `edit` has changed its dictionary in place."""
    tensors = {key: tensor.clone() for key, tensor in load_file(file).items()}
    edit(tensors)
    save_file(tensors, file)


def edit_json(file: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite a JSON object after `edit` has changed it in place."""
    value = json.loads(file.read_text("utf-8"))
    edit(value)
    file.write_text(json.dumps(value), "utf-8")


def total_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
