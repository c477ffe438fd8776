"""Collected only where it is asked for (`make test-deploy`): its tools are many and its servers real."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    asked = [
        (config.invocation_params.dir / argument.partition("::")[0]).resolve() for argument in config.args
    ]
    return None if any(path.is_relative_to(HERE) for path in asked) else True
