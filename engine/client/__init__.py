"""The engine's client, which runs in the server's process. Torch-free."""
