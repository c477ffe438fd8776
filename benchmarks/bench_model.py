"""The benchmark model: random weights in the published proportions, small enough for two CPU cores."""

from pathlib import Path
from typing import Any

import torch

from benchmarks.variants import silence

TAPS = 13
HIDDEN = 512
TEXT = {
    "hidden_size": HIDDEN,
    "intermediate_size": 1536,
    "num_hidden_layers": 36,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "vocab_size": 1024,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 5_000_000,
        "mrope_section": [12, 10, 10],
        "mrope_interleaved": True,
    },
}
# 12 layers with heads of the published size: 97M parameters
DIT: dict[str, Any] = {
    "num_layers": 12,
    "attention_head_dim": 256,
    "num_attention_heads": 3,
    "intermediate_size": 2048,
    "adaln_dim": 128,
    "llm_features_dim": HIDDEN * TAPS,
}
# The transformers by size of their heads; all are equally wide.
DITS: dict[str, dict[str, Any]] = {
    "heads-256": DIT,
    "heads-64": DIT | {"attention_head_dim": 64, "num_attention_heads": 12, "mrope_section": (12, 10, 10)},
}
VAE = {"block_out_channels": (32, 64, 128, 128), "norm_num_groups": 8}


def write_bench_model(folder: Path, dit: dict[str, Any] = DIT) -> None:
    """Write the checkpoint in the diffusers layout, in bfloat16."""
    from tests.engine.checkpoints import random_pipeline

    silence()
    random_pipeline(TEXT, dit, VAE).to(torch.bfloat16).save_pretrained(folder)
