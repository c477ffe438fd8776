"""The Triton kernels without a GPU."""

import os
import subprocess
import sys


def test_the_interpreter_computes_what_torch_does() -> None:
    """In a process of its own: Triton reads the variable when it is imported."""
    command = [sys.executable, "-m", "tests.engine.kernels.interpreted_norm"]
    run = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
