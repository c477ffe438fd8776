"""With a broken checkpoint, the server exits with code 2 and one line that names the file and the key."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.checkpoints import edit_json, edit_tensors, write_tiny

DEMO = Path(__file__).parents[1] / "models" / "demo"
DIT = "transformer/diffusion_pytorch_model.safetensors"
KEY = "layers.0.feed_forward.w1.weight"
NO_STEPS = {"num_inference_steps": 0, "guidance_schedule": [], "mu": 0.0, "std": 1.5}


def no_steps(folder: Path) -> None:
    edit_json(folder / "ideoserve.json", lambda declared: declared["presets"].update(FAST=NO_STEPS))


def raising_template(folder: Path) -> None:
    (folder / "tokenizer" / "chat_template.jinja").write_text("{{ raise_exception('no') }}", "utf-8")


def dangling(folder: Path) -> None:
    (folder / "vae" / "config.json").unlink()
    (folder / "vae" / "config.json").symlink_to("absent")


def missing(folder: Path) -> None:
    edit_tensors(folder / DIT, lambda held: held.pop(KEY))


def overflow(folder: Path) -> None:
    edit_tensors(folder / DIT, lambda held: held["final_layer.linear.weight"].fill_(3e38))


FAULTS: list[tuple[Callable[[Path], object], str]] = [
    (no_steps, "ideoserve.json: presets.FAST.num_inference_steps: "),
    (raising_template, "tokenizer/chat_template.jinja: chat_template: "),
    (dangling, "vae/config.json: "),
    (missing, f"{DIT}: {KEY}: missing"),
    (overflow, "transformer: "),
]
# Found in the HTTP process, before it listens and spawns a worker.
AT_ONCE = {no_steps, raising_template, dangling}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize(("fault", "named"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_the_server_exits_with_code_2(
    tiny: Path, tmp_path: Path, fault: Callable[[Path], object], named: str
) -> None:
    folder = shutil.copytree(tiny, tmp_path / "checkpoint")
    fault(folder)
    server = serve(folder)
    assert server.returncode == 2
    messages = [line for line in server.stderr.splitlines() if line.startswith("ideoserve: ")]
    assert len(messages) == 1
    assert messages[0].startswith(f"ideoserve: {folder}/{named}")
    assert "Traceback" not in server.stderr
    assert ("listening" in server.stdout) == (fault not in AT_ONCE)


def test_a_kernel_that_does_not_exist() -> None:
    server = serve(DEMO, "--kernels", "attention=fast")
    assert server.returncode == 2
    messages = [line for line in server.stderr.splitlines() if line.startswith("ideoserve: ")]
    there = "native, float32, products, batched, cudnn"
    assert messages == [f"ideoserve: kernels: attention=fast: the candidates are {there}"]


def test_products_in_fp8_of_other_weights(tiny: Path) -> None:
    server = serve(tiny, "--matmul", "fp8")
    assert server.returncode == 2
    messages = [line for line in server.stderr.splitlines() if line.startswith("ideoserve: ")]
    made = "if they are not quantised, --quantize fp8 makes them"
    folder = tiny / "transformer"
    assert messages == [f"ideoserve: matmul: fp8 needs fp8 weights, and those of {folder} are not; {made}"]


def test_a_path_that_is_too_long(tmp_path: Path) -> None:
    server = serve(tmp_path / ("x" * 300))
    assert server.returncode == 2
    assert server.stderr.startswith("ideoserve: ")
    assert len(server.stderr.splitlines()) == 1


def serve(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server", "--model", str(folder), "--port", "0", *flags],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )
