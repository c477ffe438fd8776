"""Configuration of the checkpoint and the engine. Torch-free."""
