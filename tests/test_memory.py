"""A server whose memory is limited: what fits is served, what does not is refused with numbers."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.config.model_config import ModelConfig
from engine.config.options import EngineOptions
from engine.memory.plan import MemoryPlan
from tests.engine.checkpoints import edit_json, write_tiny
from tests.server.process import REPOSITORY, ServerProcess, until


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 8 to 16 pixels, by default of 8."""
    folder = write_tiny(tmp_path_factory.mktemp("tiny"))
    edit_json(folder / "ideoserve.json", lambda declared: declared.update(default_size="8x8"))
    return folder


def gb_for(folder: Path, side: int) -> str:
    """The memory that images of this side take, a batch of them in progress, as a value of the setting."""
    plan = MemoryPlan.of(ModelConfig.load(folder), EngineOptions(("cpu",), max_running=8))
    return f"{plan.peak(side, side) / 1e9:.9f}"


@pytest.fixture(scope="module")
def server(tiny: Path) -> Iterator[ServerProcess]:
    """With memory for images of 12 x 12 pixels, and the text encoder in the memory of the host."""
    flags = ("--device", "cpu", "--max-memory-gb", gb_for(tiny, 12), "--offload", "text-encoder")
    server = ServerProcess("--model", str(tiny), *flags, module="server", OMP_NUM_THREADS="1")
    until(lambda: server.http.get("/readyz").status_code == 200)
    yield server
    server.close()


def test_a_size_that_can_never_fit_is_refused_with_the_limit(server: ServerProcess) -> None:
    response = server.create(prompt="a", size="16x16")
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "size"
    assert "from 8 to 12" in error["message"]


def test_the_limit_is_in_the_document_and_the_model(server: ServerProcess) -> None:
    document = server.http.get("/openapi.json").json()
    width = document["components"]["schemas"]["ImageRequest"]["properties"]["width"]
    assert "from 8 to 12" in width["description"]
    (model,) = server.http.get("/v1/models").json()["data"]
    assert model["limits"]["max_size"] == 12


def test_several_images_of_the_largest_size_run_in_turns(server: ServerProcess) -> None:
    response = server.create(prompt="a", size="12x12", n=10)
    assert response.status_code == 200, response.text
    assert len(response.json()["data"]) == 10


def test_the_plan_and_the_load_are_logged(server: ServerProcess) -> None:
    (plan,) = server.log_lines(message="memory plan")
    assert plan["weights_gb"].keys() == {"text encoder", "transformer", "unconditional transformer", "VAE"}
    assert plan["peak_gb"].keys() == {"8x8", "12x12"}
    assert plan["max_size"] == 12
    (loaded,) = server.log_lines(message="weights loaded")
    assert loaded["gb_per_second"] > 0
    (ready,) = (line for line in server.log_lines() if line["message"].startswith("ready after"))
    assert ready["phase_seconds"].keys() == {"imports", "load", "warm-up"}
    assert ready["start_seconds"] <= server.metric("ideoserve_start_seconds")


def test_a_model_that_cannot_fit_ends_the_server_with_code_2(tiny: Path) -> None:
    command = [sys.executable, "-m", "server", "--model", str(tiny), "--port", "0", "--max-memory-gb", "0.2"]
    server = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=180)
    assert server.returncode == 2
    (line,) = [line for line in server.stderr.splitlines() if line.startswith("ideoserve: ")]
    assert re.match(
        r"ideoserve: memory: the model takes 0\.\d\d GB for an image of 8x8, and 0\.20 GB are", line
    )
    assert "listening" not in server.stdout
