"""The start of a worker: what it imports."""

import subprocess
import sys
from pathlib import Path

DEMO = Path(__file__).parents[3] / "models" / "demo"
LOAD = f"""
import sys
from pathlib import Path
from engine.checkpoint.loader import load_pipeline
from engine.config.model_config import ModelConfig
from engine.runner.model_runner import ModelRunner
import torch
config = ModelConfig.load(Path({str(DEMO)!r}))
ModelRunner(load_pipeline(config.folders, "cpu", torch.float32), "cpu")
print(*sys.modules.keys() & {{"torch._dynamo", "torch._inductor", "transformers", "fastapi"}})
"""


def test_loading_a_model_imports_no_compiler() -> None:
    """Importing it takes longer than everything else that a worker does until it is ready."""
    result = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
