"""Content credentials: a signed statement of origin inside each image."""

from collections.abc import Sequence
from typing import Protocol

from engine.request import AdapterUse
from server.settings.config_error import ConfigError, needed
from server.settings.secrets import read_secret
from server.settings.settings import Settings


class Signer(Protocol):
    def sign(self, data: bytes, media_type: str, adapters: Sequence[AdapterUse] = ()) -> bytes:
        """Returns the file with credentials inside, which name the model and the adapters."""


def from_settings(settings: Settings, model_id: str) -> Signer | None:
    """None unless a certificate is configured. Raises ConfigError."""
    flag = "--c2pa-key-file"
    key = read_secret(flag, settings.c2pa_key_file, settings.c2pa_key)
    if settings.c2pa_certificate_file is None and key is None:
        return None
    certificate = needed("--c2pa-certificate-file", settings.c2pa_certificate_file)
    key = needed(flag, key)
    try:
        from server.provenance.credentials import Credentials  # an optional extra
    except ImportError:
        raise ConfigError("--c2pa-certificate-file needs the extra c2pa") from None
    return Credentials(certificate, key, model_id)
