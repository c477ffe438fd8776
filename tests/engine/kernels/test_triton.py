"""The Triton kernels without a GPU."""

import os
import subprocess
import sys
from pathlib import Path

INTERPRETED = Path(__file__).with_name("interpreted_norm.py")


def test_the_interpreter_computes_what_torch_does() -> None:
    """In a process of its own: Triton reads the variable when it is imported."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(INTERPRETED)]
    run = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
