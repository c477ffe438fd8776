"""Trains the demo checkpoint from nothing: `python -m models.training`."""
