"""Structured captions, the format that the model was trained on."""
