"""Secrets from files or environment variables, kept as SecretStr, which prints as asterisks."""

from pathlib import Path

from pydantic import SecretStr

from server.settings.config_error import ConfigError


def read_secret(flag: str, file: Path | None, value: SecretStr | None) -> SecretStr | None:
    """Return the content of `file`, else `value`, without surrounding white space. Raises ConfigError."""
    if file is None and value is None:
        return None
    text = _read(flag, file) if file else value.get_secret_value() if value else ""
    if not text.strip() or not text.isascii():
        raise ConfigError(f"{flag}: the secret is empty or not ASCII")
    return SecretStr(text.strip())


def read_token(flag: str, file: Path | None, value: SecretStr | None) -> SecretStr | None:
    """Return a secret that is sent in a header. Raises ConfigError."""
    token = read_secret(flag, file, value)
    if token and not token.get_secret_value().isprintable():
        raise ConfigError(f"{flag}: the secret contains line breaks or control characters")
    return token


def _read(flag: str, file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, ValueError):
        raise ConfigError(f"{flag}: the file cannot be read") from None
