"""Trains the demo checkpoint from scratch: `python -m models.training`."""

from engine.environment import set_up_environment

set_up_environment()
