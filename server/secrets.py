"""Secrets from a file or the environment. They are SecretStr from there on, and print as stars."""

from pathlib import Path

from pydantic import SecretStr

from server.config_error import ConfigError


def read_secret(flag: str, file: Path | None, value: SecretStr | None) -> SecretStr | None:
    """`file`'s text without the white space around it, else `value`. Raises ConfigError."""
    if file is None:
        return value
    try:
        text = file.read_text().strip()
    except (OSError, ValueError):
        raise ConfigError(f"{flag}: the file cannot be read") from None
    if not (text and text.isascii() and text.isprintable()):
        raise ConfigError(f"{flag}: the file does not hold one line of text")
    return SecretStr(text)


def require_secret(flag: str, file: Path | None, value: SecretStr | None) -> SecretStr:
    """Raises ConfigError if there is none."""
    secret = read_secret(flag, file, value)
    if secret is None:
        variable = "IDEOSERVE_" + flag.removeprefix("--").removesuffix("-file").upper().replace("-", "_")
        raise ConfigError(f"{flag} or {variable} is needed")
    return secret
