"""Third-party HTTP services."""
