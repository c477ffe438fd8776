"""The engine: everything behind the process boundary, and the torch-free client in front of it."""
