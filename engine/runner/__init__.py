"""Runs the model on a batch of samples."""
