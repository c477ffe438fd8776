"""Sets up the environment before torch is imported, skips folders unless requested, marks slow tests."""

from pathlib import Path

import pytest

from engine.environment import set_up_environment
from tests.slow import is_slow

set_up_environment()

HERE = Path(__file__).parent
ON_REQUEST = (
    HERE / "deploy",  # make test-deploy: needs many external tools
    HERE / "cuda",  # make test-cuda: fails without a GPU
)
# Files of one long test: at the end, the other processes would wait for them.
LONGEST = ("test_fleet_chaos.py", "test_chaos.py", "test_schema.py", "test_gpu.py")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    asked = [
        (config.invocation_params.dir / argument.partition("::")[0]).resolve() for argument in config.args
    ]
    for folder in ON_REQUEST:
        if collection_path.is_relative_to(folder) and not any(path.is_relative_to(folder) for path in asked):
            return True
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark slow tests, which `make test-fast` leaves out. The longest files run first."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
    for item in items:
        if isinstance(item, pytest.Function) and is_slow(item):
            item.add_marker("slow")
