"""The engine's client, in the server's process. Torch-free."""
