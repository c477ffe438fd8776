"""Errors in the settings."""

from typing import TypeVar

T = TypeVar("T")


class ConfigError(Exception):
    """A setting that cannot be used. Ends startup with one line, which names the setting and no secret."""


def needed(flag: str, value: T | None) -> T:
    """Return the value of a required setting. Raises ConfigError if it is None."""
    if value is not None:
        return value
    # The environment holds a secret itself, where the flag names its file.
    variable = (
        flag.strip("-").replace("key-file", "key").replace("secret-file", "secret").replace("-", "_").upper()
    )
    raise ConfigError(f"{flag} or IDEOSERVE_{variable} is required")
