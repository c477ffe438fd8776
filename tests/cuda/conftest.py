"""Collected only where it is asked for (`make test-cuda`): it needs a GPU, and fails without one."""

from pathlib import Path

import pytest

from tests.engine.conftest import checkpoint, checkpoints, runner, runners

__all__ = ["checkpoint", "checkpoints", "runner", "runners"]
HERE = Path(__file__).parent


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    asked = [
        (config.invocation_params.dir / argument.partition("::")[0]).resolve() for argument in config.args
    ]
    return None if any(path.is_relative_to(HERE) for path in asked) else True
