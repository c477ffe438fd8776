"""What an operator set and cannot be served."""

from typing import TypeVar

T = TypeVar("T")


class ConfigError(Exception):
    """Ends the start with one line; names the setting, never a secret."""


def needed(flag: str, value: T | None) -> T:
    """Raises ConfigError."""
    if value is not None:
        return value
    # A secret may stand in the environment itself, any other file only by its path.
    variable = flag.strip("-").replace("-key-file", "-key").replace("-", "_").upper()
    raise ConfigError(f"{flag} or IDEOSERVE_{variable} is needed")
