"""Signatures of Standard Webhooks: `v1,<base64 of HMAC-SHA256 over id.timestamp.body>`."""

import base64
import binascii
import hashlib
import hmac

from pydantic import SecretStr

from server.settings.config_error import ConfigError

PREFIX = "whsec_"
LENGTHS = range(24, 65)  # bytes


class Signer:
    """Signs with each of the secrets, which are separated by white space: during a rotation there are two."""

    def __init__(self, flag: str, secrets: SecretStr) -> None:
        """Raises ConfigError, which names the flag."""
        self._keys = [_key(flag, secret) for secret in secrets.get_secret_value().split()]

    def headers(self, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
        """`timestamp` is that of the attempt, in seconds since 1970."""
        signed = f"{message_id}.{timestamp}.".encode() + body
        return {
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": " ".join(_signature(key, signed) for key in self._keys),
        }


def _signature(key: bytes, signed: bytes) -> str:
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def _key(flag: str, secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not secret.startswith(PREFIX) or len(key) not in LENGTHS:
        raise ConfigError(
            f"{flag}: a secret is {PREFIX} and the base64 of {LENGTHS[0]} to {LENGTHS[-1]} bytes; "
            "several are separated by white space"
        )
    return key
