"""Loads the model from a checkpoint folder."""
