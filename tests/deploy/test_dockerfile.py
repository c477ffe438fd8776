"""Tests of the Dockerfile's arguments. `make image-test` builds the image."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.deploy.chart import REPOSITORY

DOCKERFILE = (REPOSITORY / "deploy/Dockerfile").read_text()
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
LOCKS = ("requirements.lock", "deploy/image.lock")
ARGUMENTS = dict(re.findall(r'^ARG (\w+)="?([^"\n]+)"?$', DOCKERFILE, re.MULTILINE))


def _install(folder: Path, **arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the instruction that installs packages, with `echo` instead of pip, which prints the arguments."""
    (run,) = re.findall(r"^RUN (.*tomllib.*)$", DOCKERFILE.replace("\\\n", ""), re.MULTILINE)
    for file in ("pyproject.toml", *LOCKS):
        (folder / Path(file).name).write_text((REPOSITORY / file).read_text())
    script = run.replace("/opt/pip/bin/pip", "echo").replace("python3", sys.executable)
    environment = {"PATH": "/usr/bin:/bin", **ARGUMENTS, **arguments}
    command = ["/bin/sh", "-eu", "-c", script]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def _extras(*names: str) -> list[str]:
    return [requirement for name in names for requirement in PROJECT["optional-dependencies"][name]]


def test_the_default_is_cuda_with_torch_from_the_package_index(tmp_path: Path) -> None:
    printed = _install(tmp_path).stdout.split()
    assert [word for word in printed if "torch" in word or "find-links" in word] == []
    assert printed[-4:] == ["--constraint", "requirements.lock", "--constraint", "image.lock"]
    wanted = (tmp_path / "dependencies.txt").read_text().splitlines()
    assert wanted == [*PROJECT["dependencies"], *_extras("otel", "c2pa", "store", "queue", "nf4")]


def test_cpu_uses_the_cpu_build_of_torch_at_the_locked_version(tmp_path: Path) -> None:
    printed = _install(tmp_path, VARIANT="cpu").stdout.split()
    (locked,) = re.findall(r"^torch==.*$", (REPOSITORY / "requirements.lock").read_text(), re.MULTILINE)
    assert printed[-3:] == [f"{locked}+cpu", "--find-links", ARGUMENTS["TORCH_CPU_WHEELS"]]
    wanted = (tmp_path / "dependencies.txt").read_text().splitlines()
    assert wanted == [*PROJECT["dependencies"], *_extras("otel", "c2pa", "store", "queue")]


def test_extras_can_be_empty(tmp_path: Path) -> None:
    assert _install(tmp_path, VARIANT="cpu", EXTRAS="").returncode == 0
    assert (tmp_path / "dependencies.txt").read_text().splitlines() == PROJECT["dependencies"]


@pytest.mark.parametrize(("name", "value"), [("VARIANT", "rocm"), ("EXTRAS", "otel nothing")])
def test_an_unknown_argument_value_fails_the_build(name: str, value: str, tmp_path: Path) -> None:
    done = _install(tmp_path, **{name: value})
    assert done.returncode
    assert "install" not in done.stdout


def test_the_locks_do_not_overlap() -> None:
    names = [
        re.sub(r"[-_.]+", "-", line.partition("==")[0].lower())
        for file in LOCKS
        for line in (REPOSITORY / file).read_text().splitlines()
        if "==" in line
    ]
    assert len(names) == len(set(names))


def test_both_stages_use_the_base_image_argument() -> None:
    assert re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE) == ["${BASE_IMAGE}", "${BASE_IMAGE}"]
