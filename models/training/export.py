"""Writes the trained parts as a checkpoint in the diffusers layout, with weights in bfloat16."""

import json
import random
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from transformers import Qwen3VLConfig, Qwen3VLModel

from engine.checkpoint.latents import LatentRGB
from engine.models.dit import DiTConfig
from engine.runner.preview import least_squares
from models.training import dit, progress, text, vae

PIPELINE = {
    "_class_name": "Ideogram4Pipeline",
    "_diffusers_version": "0.42.1",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Qwen3VLModel"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "transformer": ["diffusers", "Ideogram4Transformer2DModel"],
    "unconditional_transformer": ["diffusers", "Ideogram4Transformer2DModel"],
    "vae": ["diffusers", "AutoencoderKLFlux2"],
    "prompt_enhancer_head": [None, None],
}
SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0}
VISION = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "out_hidden_size": text.HIDDEN,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [],
    "patch_size": 16,
}
DIT_NAME = "diffusion_pytorch_model.safetensors"


def guided(steps: int, guidance: float, tail: int, mu: float, std: float) -> dict[str, Any]:
    """A preset with constant guidance, except for the last `tail` steps, which have none."""
    schedule = [[guidance, steps - tail], [1.0, tail]]
    return {"num_inference_steps": steps, "guidance_schedule": schedule, "mu": mu, "std": std}


SERVING = {
    "id": "ideogram-4-demo",
    "limits": {
        "min_size": 64,
        "max_size": 128,
        "multiple_of": 16,
        "max_aspect_ratio": 1.5,
        "max_prompt_tokens": 2048,
    },
    "default_size": "128x128",
    "presets": {
        "V4_QUALITY_48": guided(48, 3.0, 3, 1.4, 1.5),
        "V4_DEFAULT_20": guided(20, 3.0, 2, 1.4, 1.5),
        "V4_TURBO_12": guided(12, 3.0, 1, 1.4, 1.5),
    },
}


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Write floating-point weights as bfloat16 and counters unchanged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rounded = {k: (v.bfloat16() if v.is_floating_point() else v).contiguous() for k, v in weights.items()}
    save_file(rounded, path, metadata={"format": "pt"})


def write_dit(folder: Path, config: DiTConfig, weights: dict[str, Tensor]) -> None:
    """Write one transformer without its outline head."""
    write_json(folder / "config.json", {"_class_name": "Ideogram4Transformer2DModel"} | asdict(config))
    write_weights(folder / DIT_NAME, {k: v for k, v in weights.items() if not k.startswith("outline.")})


def write_vae(folder: Path, weights: dict[str, Tensor]) -> None:
    config = asdict(vae.CONFIG) | {
        "_class_name": "AutoencoderKLFlux2",
        "in_channels": 3,
        "use_quant_conv": True,
        "patch_size": [2, 2],
        "sample_size": 128,
        "down_block_types": ["DownEncoderBlock2D"] * len(vae.CONFIG.block_out_channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(vae.CONFIG.block_out_channels),
        "act_fn": "silu",
    }
    write_json(folder / "config.json", config)
    write_weights(folder / DIT_NAME, {k: v.contiguous() for k, v in weights.items()})
    rgb = fit_latent_rgb(weights)
    write_json(folder / "latent_rgb.json", {"weight": rgb.weight.tolist(), "bias": rgb.bias.tolist()})


@torch.no_grad()
def fit_latent_rgb(weights: dict[str, Tensor]) -> LatentRGB:
    """Fit the map for previews on training images; random latents do not represent so small a VAE."""
    model = vae.TrainedVAE()
    model.load_state_dict(weights)
    pictures = vae.random_batch(random.Random("previews"), 32, None)
    small = F.avg_pool2d(pictures, vae.CONFIG.scale_factor)
    latents = model.eval().encode(pictures)
    return least_squares(*(each.movedim(1, -1).flatten(0, -2) for each in (latents, small)))


def write_text_encoder(folder: Path, weights: dict[str, Tensor]) -> None:
    """Write the text model as a Qwen3VLModel, whose vision tower is an unused stub."""
    torch.manual_seed(4)
    shell = Qwen3VLModel(Qwen3VLConfig(text_config=dict(text.CONFIG), vision_config=VISION))
    shell.language_model.load_state_dict(weights)
    shell.to(torch.bfloat16).save_pretrained(folder)


def export(work: Path, out: Path) -> None:
    """Write the checkpoint of a finished run. Keeps the README of `out`."""
    trained = {name: progress.load(work / f"{name}.pt") for name in ("text", "vae", "dit")}
    assert all(trained.values()), "the run is not finished"
    for part in ("tokenizer", "text_encoder", "transformer", "unconditional_transformer", "vae"):
        shutil.rmtree(out / part, ignore_errors=True)
    write_checkpoint(work, out, **{name: state for name, state in trained.items() if state})


def write_checkpoint(
    work: Path, out: Path, text: dict[str, Any], vae: dict[str, Any], dit: dict[str, Any]
) -> None:
    """Write all folders of the layout."""
    shutil.copytree(work / "tokenizer", out / "tokenizer")
    write_text_encoder(out / "text_encoder", text["model"])
    write_vae(out / "vae", vae["model"])
    write_transformers(out, dit)
    write_json(out / "scheduler" / "scheduler_config.json", SCHEDULER)
    write_json(out / "model_index.json", PIPELINE)
    write_json(out / "ideoserve.json", SERVING)
    for weights in out.rglob("*.safetensors"):
        weights.chmod(0o644)  # saved readable by the owner only, but a container runs as another user


def write_transformers(out: Path, trained: dict[str, Any]) -> None:
    write_dit(out / "transformer", dit.CONDITIONAL, trained["conditional"])
    write_dit(out / "unconditional_transformer", dit.UNCONDITIONAL, trained["unconditional"])
