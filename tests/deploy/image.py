"""Tests of the image that build-image.sh built, run like the CPU profile of the chart (`make image-test`).

The CUDA image runs on the CPU too.
"""

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

import httpx
import pytest
from PIL import Image

from tests.deploy.chart import REPOSITORY, environment, render, server
from tests.deploy.test_dockerfile import LOCKS

VARIANT = os.environ.get("VARIANT", "cpu")
IMAGE = f"localhost/ideoserve:test-{VARIANT}"
MEGABYTES = {"cpu": 1450, "cuda": 9000}[VARIANT]


@dataclass(frozen=True)
class Container:
    name: str
    port: int
    ready_seconds: float

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["podman", "exec", self.name, *command], capture_output=True, text=True)


@pytest.fixture(scope="module")
def container() -> Iterator[Container]:
    """Run the image with the arguments and variables of the chart, on a free port of the host network."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    chart = server(render("cpu-demo"))
    arguments = [{"::": "127.0.0.1", "8000": str(port)}.get(word, word) for word in chart["args"]]
    variables = environment(chart) | {"OMP_NUM_THREADS": "1"}
    name = f"ideoserve-test-{os.getpid()}"
    limits = "--network host --no-healthcheck --ulimit nofile=1024:1024 --ulimit nproc=4096:4096"
    confined = "--read-only --tmpfs /tmp --cap-drop all --security-opt no-new-privileges"
    flags = [f"--env={key}={value}" for key, value in variables.items()]
    started = time.monotonic()
    run = ["podman", "--runtime", "runc", "run", "--detach", "--name", name]
    command = [*run, *limits.split(), *confined.split(), *flags, IMAGE, *arguments]
    subprocess.run(command, check=True, capture_output=True)
    try:
        _wait_ready(name, port)
        yield Container(name, port, time.monotonic() - started)
    finally:
        subprocess.run(["podman", "rm", "--force", "--volumes", name], capture_output=True)


def _wait_ready(name: str, port: int) -> None:
    give_up = time.monotonic() + 300
    while time.monotonic() < give_up and _is_running(name):
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)  # polls like a kubelet
    logs = subprocess.run(["podman", "logs", name], capture_output=True, text=True)
    pytest.fail(f"not ready: {logs.stdout}{logs.stderr}")


def _is_running(name: str) -> bool:
    command = ["podman", "inspect", "--format", "{{.State.Running}}", name]
    return subprocess.check_output(command, text=True).strip() == "true"


def _inspect() -> dict[str, object]:
    (found,) = json.loads(subprocess.check_output(["podman", "image", "inspect", IMAGE]))
    assert isinstance(found, dict)
    return found


def test_it_generates_an_image(container: Container) -> None:
    started = time.monotonic()
    answer = httpx.post(
        f"http://127.0.0.1:{container.port}/v1/images",
        json={"prompt": "a red circle on a white background", "seed": 7},
        headers={"Accept": "image/png"},
        timeout=60,
    )
    assert answer.status_code == 200
    assert Image.open(BytesIO(answer.content)).format == "PNG"
    print(f"ready in {container.ready_seconds:.1f} s, an image in {time.monotonic() - started:.2f} s")


def test_it_runs_as_a_user_that_can_write_only_to_the_volumes(container: Container) -> None:
    assert container.run("id", "-u").stdout.strip() == "10001"
    assert container.run("touch", "/app/x").returncode != 0
    assert container.run("touch", "/cache/x", "/tmp/x").returncode == 0


@pytest.mark.parametrize(("user", "code"), [("1000660000:0", 0), ("1000660000:1000", 1)])
def test_any_user_of_group_0_can_write_to_the_cache(container: Container, user: str, code: int) -> None:
    """OpenShift assigns such a user."""
    touch = ["podman", "exec", "--user", user, container.name, "touch", f"/cache/{user}"]
    assert subprocess.run(touch, capture_output=True).returncode == code


def test_the_health_check_passes_and_fails(container: Container) -> None:
    test = _inspect()["Healthcheck"]["Test"]  # type: ignore[index]  # an object
    assert test[0] == "CMD"
    here = [word.replace("8000", str(container.port)) for word in test[1:]]
    assert container.run(*here).returncode == 0
    assert container.run(*(word.replace(str(container.port), "1") for word in here)).returncode != 0


def test_it_contains_no_weights_except_the_demo_model(container: Container) -> None:
    found = container.run(
        "sh", "-c", "find / -xdev -name '*.safetensors' -o -xdev -name '*.gguf' | sort"
    ).stdout
    assert found.split()
    assert all(name.startswith("/app/models/demo/") for name in found.split())


def test_it_contains_no_installer_and_no_tests(container: Container) -> None:
    assert container.run("python", "-m", "pip", "--version").returncode != 0
    assert container.run("python", "-c", "import pytest").returncode != 0
    assert container.run("ls", "/app").stdout.split() == ["LICENSE", "engine", "models", "server"]


def test_it_contains_the_extras(container: Container) -> None:
    code = (
        "import c2pa, msgspec, nats, obstore, opentelemetry.sdk.trace, opentelemetry.exporter.otlp.proto.http"
    )
    assert container.run("python", "-c", code).stderr == ""


@pytest.mark.skipif(VARIANT == "cpu", reason="CUDA image only")
def test_the_cuda_image_contains_the_gpu_dependencies(container: Container) -> None:
    """The CUDA build of torch, the nf4 kernels, and the compiler that Triton needs."""
    code = "import torch, bitsandbytes, shutil; print(torch.version.cuda, shutil.which('gcc'))"
    assert container.run("python", "-c", code).stdout.split() == ["13.0", "/usr/bin/gcc"]


def test_the_installed_versions_are_locked(container: Container) -> None:
    code = "import importlib.metadata as m; print(*(f'{d.name}=={d.version}' for d in m.distributions()))"
    installed = (
        container.run("python", "-c", code).stdout.lower().replace("_", "-").replace("+cpu", "").split()
    )
    locks = "".join((REPOSITORY / file).read_text() for file in LOCKS)
    assert installed
    assert set(installed) <= set(locks.lower().replace("_", "-").split())


def test_its_size_is_bounded() -> None:
    size = _inspect()["Size"]
    assert isinstance(size, int)
    print(f"{size / 1e6:.0f} MB")
    assert size < MEGABYTES * 1e6


def test_sigterm_exits_with_code_0(container: Container) -> None:
    """Stops the container, so this test runs last."""
    subprocess.run(["podman", "kill", "--signal", "TERM", container.name], check=True, capture_output=True)
    code = subprocess.check_output(["podman", "wait", container.name], text=True, timeout=60)
    assert code.strip() == "0"
