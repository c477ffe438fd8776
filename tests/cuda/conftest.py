"""Fixtures shared with the engine tests."""

from tests.engine.conftest import checkpoint, checkpoints, runner, runners

__all__ = ["checkpoint", "checkpoints", "runner", "runners"]
