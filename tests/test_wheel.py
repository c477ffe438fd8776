"""Installs the wheel in a new environment and serves the demo model from another folder.

The environment shares the dependencies that are already installed, but neither the checkout nor its editable
install: the dependencies are added by a .pth file, and Python ignores .pth files in folders added that way.
"""

import io
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from models.training.reading import read_image, read_name
from server import VERSION
from tests.server.process import HANG, ServerProcess, until

ROOT = Path(__file__).parents[1]
PACKAGES = ("engine", "server")
# Everything that a build reads.
SOURCES = (*PACKAGES, "pyproject.toml", "README.md", "LICENSE")
OUTSIDE = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, because setuptools keeps a `build` folder and packs stale files from it."""
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir"]
    run([sys.executable, "-m", "pip", "wheel", *options, str(source / "dist"), str(source)])
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of the environment in which the wheel is installed."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    options = ["--no-deps", "--no-index", "--quiet"]
    python = str(folder / "bin/python")
    run([sys.executable, "-m", "pip", "--python", python, "install", *options, str(wheel)])
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin"


def run(command: list[str], **options: Path) -> str:
    """Return the output of a command that must succeed."""
    done = subprocess.run(command, env=OUTSIDE, capture_output=True, text=True, timeout=HANG, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_contains_every_file_of_the_packages(wheel: Path) -> None:
    files = {
        str(file.relative_to(ROOT))
        for package in PACKAGES
        for file in (ROOT / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == files


def test_the_wheel_has_the_version_and_the_license(wheel: Path) -> None:
    assert wheel.name == f"ideoserve-{VERSION}-py3-none-any.whl"
    (license_file,) = (name for name in zipfile.ZipFile(wheel).namelist() if name.endswith("/LICENSE"))
    assert zipfile.ZipFile(wheel).read(license_file) == (ROOT / "LICENSE").read_bytes()


def test_the_installed_code_is_imported(installed: Path, tmp_path: Path) -> None:
    script = "import engine, server; print(engine.__file__, server.__file__)"
    for file in run([str(installed / "python"), "-c", script], cwd=tmp_path).split():
        assert Path(file).is_relative_to(installed.parent)


def test_a_worker_does_not_import_the_http_stack(installed: Path, tmp_path: Path) -> None:
    """A spawned process runs its parent's main script again, as `__mp_main__`."""
    script = f"import runpy, sys; runpy.run_path({str(installed / 'ideoserve')!r}, run_name='__mp_main__')"
    loaded = run([str(installed / "python"), "-c", f"{script}; print(*sys.modules)"], cwd=tmp_path).split()
    assert "server" in loaded
    assert not {"fastapi", "pydantic", "uvicorn"} & set(loaded)


def test_the_installed_server_serves_the_demo_model(installed: Path, tmp_path: Path) -> None:
    command = [str(installed / "ideoserve"), "--model", str(ROOT / "models/demo"), "--log-level", "error"]
    server = ServerProcess(command=command, cwd=tmp_path)
    try:
        until(lambda: server.http.get("/readyz").status_code == 200)
        assert server.http.get("/").headers["Content-Type"].startswith("text/html")
        body = {"prompt": "a red circle on a white background", "preset": "V4_TURBO_12", "seed": 0}
        response = server.http.post("/v1/images", json=body, headers={"Accept": "image/png"})
    finally:
        server.close()
    assert response.status_code == 200, response.text
    reading = read_image(Image.open(io.BytesIO(response.content)).convert("RGB"))
    (part,) = reading.parts
    assert (reading.background, part.colour, read_name(part, "shape")) == ("white", "red", "circle")
