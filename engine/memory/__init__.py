"""Plans the memory of a device before the model is loaded."""
