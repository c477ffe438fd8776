"""The HTTP process: the wire contract over an engine it knows only through `engine.client`."""

VERSION = "0.1.0"  # pyproject.toml reads it from here; tests/test_version.py names the other places
