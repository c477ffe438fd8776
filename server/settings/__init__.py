"""Settings from flags, environment variables and files."""
