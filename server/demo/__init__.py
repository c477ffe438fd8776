"""Demonstrations: `make demo` and `make demo-fleet`."""
