"""A broken checkpoint ends the whole program with exit code 2 and a line that names the file and the key."""

import os
import subprocess
import sys
from pathlib import Path

from tests.engine.checkpoints import edit_tensors, write_checkpoint

KEY = "layers.1.feed_forward.w1.weight"


def test_the_server_ends_with_code_2(tmp_path: Path) -> None:
    file = write_checkpoint(tmp_path, "official").path / "transformer/diffusion_pytorch_model.safetensors"
    edit_tensors(file, lambda held: held.pop(KEY))
    server = subprocess.run(
        [sys.executable, "-m", "server", "--model", str(tmp_path), "--port", "0"],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert server.returncode == 2
    said = [line for line in server.stderr.splitlines() if line.startswith("ideoserve: ")]
    assert said == [f"ideoserve: {file}: {KEY}: missing"]
    assert "Traceback" not in server.stderr
