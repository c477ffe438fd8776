"""Writes C2PA content credentials into image files; needs the optional extra `c2pa`."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import c2pa
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from PIL import Image
from pydantic import SecretStr

from engine.request import AdapterUse
from server import VERSION
from server.settings.config_error import ConfigError

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
ADAPTERS = "ideoserve.adapters"  # parameter of the action
CURVES = {"secp256r1": b"es256", "secp384r1": b"es384", "secp521r1": b"es512"}
# No network access, and no thumbnail, which would be a second copy of the image.
LIBRARY: dict[str, Any] = {
    "builder": {"thumbnail": {"enabled": False}},
    "verify": {"verify_after_sign": False, "remote_manifest_fetch": False, "ocsp_fetch": False},
}


class Credentials:
    """Signs with a certificate chain (PEM, the signer's certificate first) and its private key (PEM)."""

    def __init__(self, certificates: Path, key: SecretStr, model_id: str) -> None:
        """Signs a test image. Raises ConfigError if that fails."""
        agent = {"name": f"ideoserve {model_id}", "version": VERSION}
        self._action = {"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE, "softwareAgent": agent}
        self._context = c2pa.Context.from_dict(LIBRARY)
        self._signer = _signer(certificates, key)
        self._try()

    def sign(self, data: bytes, media_type: str, adapters: Sequence[AdapterUse] = ()) -> bytes:
        """Returns the file with credentials inside, which name the model and the adapters. Thread-safe, takes
        milliseconds."""
        signed = io.BytesIO()
        with c2pa.Builder(self._manifest(adapters), self._context) as builder:
            builder.sign(self._signer, media_type, io.BytesIO(data), signed)
        return signed.getvalue()

    def _manifest(self, adapters: Sequence[AdapterUse]) -> dict[str, Any]:
        action = self._action
        if adapters:
            named = [{"name": use.name, "digest": use.digest, "scale": use.scale} for use in adapters]
            action = action | {"parameters": {ADAPTERS: named}}
        return {
            "claim_generator_info": [{"name": "ideoserve", "version": VERSION}],
            "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}],
        }

    def _try(self) -> None:
        file = io.BytesIO()
        Image.new("RGB", (16, 16)).save(file, "png")
        try:
            signed = self.sign(file.getvalue(), "image/png")
            state = c2pa.Reader("image/png", io.BytesIO(signed), context=self._context).get_validation_state()
        except c2pa.C2paError:
            state = None
        if state not in ("Valid", "Trusted"):
            raise ConfigError("--c2pa-certificate-file: its certificate, with this key, cannot sign content")


def _signer(certificates: Path, key: SecretStr) -> c2pa.Signer:
    try:
        chain = certificates.read_bytes()
    except OSError:
        raise ConfigError("--c2pa-certificate-file: the file cannot be read") from None
    algorithm, private = _private_key(key.get_secret_value().encode())
    try:
        return c2pa.Signer.from_info(c2pa.C2paSignerInfo(algorithm, chain, private, None))
    except c2pa.C2paError:
        raise ConfigError("--c2pa-certificate-file: not a certificate chain of this key") from None


def _private_key(pem: bytes) -> tuple[bytes, bytes]:
    """The signature algorithm, and the key in the format that the library reads."""
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError("--c2pa-key-file: not an unencrypted PEM private key") from None
    algorithm = _algorithm(key)
    return algorithm, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _algorithm(key: object) -> bytes:
    match key:
        case ec.EllipticCurvePrivateKey() if key.curve.name in CURVES:
            return CURVES[key.curve.name]
        case ed25519.Ed25519PrivateKey():
            return b"ed25519"
        case rsa.RSAPrivateKey():
            return b"ps256"
    raise ConfigError("--c2pa-key-file: not an EC, Ed25519 or RSA key")
