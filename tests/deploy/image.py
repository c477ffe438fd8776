"""The image that build-image.sh made, run as the CPU profile of the chart runs it (`make image-test`).
That of CUDA too: its torch runs on a CPU as well."""

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
    """With the arguments and variables of the chart, on this machine's network and a free port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    chart = server(render("cpu-demo"))
    arguments = [{"0.0.0.0": "127.0.0.1", "8000": str(port)}.get(word, word) for word in chart["args"]]
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
        time.sleep(0.1)  # readiness can only be asked for, as a kubelet does
    logs = subprocess.run(["podman", "logs", name], capture_output=True, text=True)
    pytest.fail(f"not ready: {logs.stdout}{logs.stderr}")


def _is_running(name: str) -> bool:
    command = ["podman", "inspect", "--format", "{{.State.Running}}", name]
    return subprocess.check_output(command, text=True).strip() == "true"


def _inspect() -> dict[str, object]:
    (found,) = json.loads(subprocess.check_output(["podman", "image", "inspect", IMAGE]))
    assert isinstance(found, dict)
    return found


def test_it_draws(container: Container) -> None:
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


def test_it_is_nobody_and_can_write_nothing_but_its_volumes(container: Container) -> None:
    assert container.run("id", "-u").stdout.strip() == "10001"
    assert container.run("touch", "/app/x").returncode != 0
    assert container.run("touch", "/cache/x", "/tmp/x").returncode == 0


def test_the_health_check_of_the_image_passes_and_fails(container: Container) -> None:
    test = _inspect()["Healthcheck"]["Test"]  # type: ignore[index]  # an object
    assert test[0] == "CMD"
    here = [word.replace("8000", str(container.port)) for word in test[1:]]
    assert container.run(*here).returncode == 0
    assert container.run(*(word.replace(str(container.port), "1") for word in here)).returncode != 0


def test_it_carries_no_weights_but_the_demos(container: Container) -> None:
    found = container.run(
        "sh", "-c", "find / -xdev -name '*.safetensors' -o -xdev -name '*.gguf' | sort"
    ).stdout
    assert found.split()
    assert all(name.startswith("/app/models/demo/") for name in found.split())


def test_it_carries_no_installer_nor_tests(container: Container) -> None:
    assert container.run("python", "-m", "pip", "--version").returncode != 0
    assert container.run("python", "-c", "import pytest").returncode != 0
    assert container.run("ls", "/app").stdout.split() == ["engine", "models", "server"]


def test_it_has_what_settings_name(container: Container) -> None:
    code = "import c2pa, opentelemetry.sdk.trace, opentelemetry.exporter.otlp.proto.http"
    assert container.run("python", "-c", code).stderr == ""


@pytest.mark.skipif(VARIANT == "cpu", reason="of CUDA alone")
def test_it_has_what_a_gpu_takes(container: Container) -> None:
    """Its own build of torch, the kernels of nf4, and the compiler that Triton looks for."""
    code = "import torch, bitsandbytes, shutil; print(torch.version.cuda, shutil.which('gcc'))"
    assert container.run("python", "-c", code).stdout.split() == ["13.0", "/usr/bin/gcc"]


def test_the_versions_are_those_of_the_lock_files(container: Container) -> None:
    code = "import importlib.metadata as m; print(*(f'{d.name}=={d.version}' for d in m.distributions()))"
    installed = (
        container.run("python", "-c", code).stdout.lower().replace("_", "-").replace("+cpu", "").split()
    )
    locks = "".join((REPOSITORY / file).read_text() for file in LOCKS)
    assert installed
    assert set(installed) <= set(locks.lower().replace("_", "-").split())


def test_it_is_small() -> None:
    size = _inspect()["Size"]
    assert isinstance(size, int)
    print(f"{size / 1e6:.0f} MB")
    assert size < MEGABYTES * 1e6


def test_sigterm_ends_it_cleanly(container: Container) -> None:
    """Last: it ends the container."""
    subprocess.run(["podman", "kill", "--signal", "TERM", container.name], check=True, capture_output=True)
    code = subprocess.check_output(["podman", "wait", container.name], text=True, timeout=60)
    assert code.strip() == "0"
