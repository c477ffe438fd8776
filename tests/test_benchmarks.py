"""The benchmarks match the code: they can be imported, and the names that they patch exist."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import benchmarks

FILES = sorted(Path(benchmarks.__path__[0]).glob("*.py"))


@pytest.mark.parametrize("name", [file.stem for file in FILES if file.stem != "__init__"])
def test_each_benchmark_can_be_imported(name: str) -> None:
    importlib.import_module(f"benchmarks.{name}")


def test_patched_names_exist() -> None:
    targets = [target for file in FILES for target in re.findall(r'patch\("([\w.]+)"', file.read_text())]
    assert targets
    for target in targets:
        pkgutil.resolve_name(target)
