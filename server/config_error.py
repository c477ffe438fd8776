"""What an operator set and cannot be served."""


class ConfigError(Exception):
    """Ends the start with one line; names the setting, never a secret."""
