"""Tests that start a program or load the reference implementation, directly or indirectly, are slow."""

from collections.abc import Callable
from pathlib import Path

import pytest

from models.training import text
from tests.server.conftest import server
from tests.server.process import ServerProcess, small
from tests.slow import reaches


def uses_a_class() -> None:
    ServerProcess()


def uses_a_module() -> None:
    text.build()


def imports_inside() -> None:
    def run() -> None:
        import subprocess

        subprocess.run(["true"])

    run()


def uses_nothing_slow() -> None:
    small(size="64x64")
    Path("subprocess").exists()


@pytest.mark.parametrize("function", [uses_a_class, uses_a_module, imports_inside, server])
def test_functions_that_reach_a_slow_package_are_slow(
    function: Callable[..., object],
) -> None:
    assert reaches(getattr(function, "__wrapped__", function))


def test_other_functions_are_not_slow() -> None:
    assert not reaches(uses_nothing_slow)


def test_a_slow_test_has_the_marker(request: pytest.FixtureRequest) -> None:
    assert reaches(uses_a_class)  # which makes this test slow
    assert request.node.get_closest_marker("slow")
