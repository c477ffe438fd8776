"""Set up before torch is loaded, and which folders are collected only on request."""

from pathlib import Path

import pytest

from engine.environment import set_up_environment

set_up_environment()
HERE = Path(__file__).parent
ON_REQUEST = (
    HERE / "deploy",  # make test-deploy: its tools are many and its servers real
    HERE / "cuda",  # make test-cuda: it needs a GPU, and fails without one
)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    asked = [
        (config.invocation_params.dir / argument.partition("::")[0]).resolve() for argument in config.args
    ]
    for folder in ON_REQUEST:
        if collection_path.is_relative_to(folder) and not any(path.is_relative_to(folder) for path in asked):
            return True
    return None
