"""Structured captions: what the model was trained on."""
