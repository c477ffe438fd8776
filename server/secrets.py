"""Secrets from a file or the environment. They are SecretStr from there on, and print as stars."""

from pathlib import Path

from pydantic import SecretStr

from server.config_error import ConfigError


def read_secret(flag: str, file: Path | None, value: SecretStr | None) -> SecretStr | None:
    """`file`'s text without the white space around it, else `value`. Raises ConfigError."""
    if file is None:
        return value
    try:
        text = file.read_text("ascii").strip()
    except (OSError, ValueError):
        raise ConfigError(f"{flag}: the file cannot be read") from None
    if not text:
        raise ConfigError(f"{flag}: the file is empty")
    return SecretStr(text)
