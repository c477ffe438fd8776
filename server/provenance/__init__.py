"""Content credentials: an image that says, signed, where it comes from."""

from typing import Protocol

from server.config_error import ConfigError, needed
from server.secrets import read_secret
from server.settings import Settings


class Signer(Protocol):
    def sign(self, data: bytes, media_type: str) -> bytes:
        """The file with credentials inside."""


def from_settings(settings: Settings, model_id: str) -> Signer | None:
    """None if images stay unsigned. Raises ConfigError."""
    if settings.c2pa_certificate_file is None:
        return None
    try:
        from server.provenance.credentials import Credentials  # an optional extra
    except ImportError:
        raise ConfigError("--c2pa-certificate-file needs the extra c2pa") from None
    flag = "--c2pa-key-file"
    key = needed(flag, read_secret(flag, settings.c2pa_key_file, settings.c2pa_key))
    return Credentials(settings.c2pa_certificate_file, key, model_id)
