"""A checkpoint folder -> the model."""
